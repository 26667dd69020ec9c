package downstream

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
)

func TestMountedPathsAreBehindTheLoginAndEndAtTheStop(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(file, []byte("press secret-secret-secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := LoadTokens(file)
	if err != nil {
		t.Fatal(err)
	}
	router, err := NewRouter(defaultRoutes(), []string{"press-7"})
	if err != nil {
		t.Fatal(err)
	}
	h, err := NewHTTP(HTTPConfig{Listen: "127.0.0.1:0", Tokens: tokens}, NewGate(router, newFakeSink(t, 0), NewLedger(0, 0), GateLimits{}, zap.NewNop()), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{}, 1)
	h.Mount("/v1/c2d/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		begun <- struct{}{}
		<-r.Context().Done()
	}))
	if err := h.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- h.Run(ctx) }()
	get := func(token string) *http.Response {
		r, err := http.NewRequest(http.MethodGet, "http://"+h.Addr().String()+"/v1/c2d/press-7", nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	if resp := get(""); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a token: %d", resp.StatusCode)
	}
	resp := get("secret-secret-secret")
	defer resp.Body.Close()
	<-begun
	stop()
	select {
	case err := <-ran:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(drainTimeout / 2):
		t.Error("a stream delays the stop")
	}
}
