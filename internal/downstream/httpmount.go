package downstream

import (
	"context"
	"net/http"
	"strings"
)

// mount is a handler for everything below a path.
type mount struct {
	prefix  string
	handler http.Handler
}

// Mount has requests whose path begins with prefix answered by another handler,
// behind this listener's login. It is called before Run. The context of such a
// request ends as soon as the listener is told to stop, so that a stream does not
// delay it; limits of time for reading and writing are those of the listener unless
// the handler changes them.
func (h *HTTP) Mount(prefix string, handler http.Handler) {
	h.mounts = append(h.mounts, mount{prefix, handler})
}

// mounted answers a request for a mounted path; false when there is none.
func (h *HTTP) mounted(w http.ResponseWriter, r *http.Request) bool {
	for _, m := range h.mounts {
		if !strings.HasPrefix(r.URL.Path, m.prefix) {
			continue
		}
		h.authenticated(w, r, func(string) {
			if h.serving == nil {
				m.handler.ServeHTTP(w, r)
				return
			}
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			defer context.AfterFunc(h.serving, cancel)()
			m.handler.ServeHTTP(w, r.WithContext(ctx))
		})
		return true
	}
	return false
}
