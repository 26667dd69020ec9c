package cloud

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// handlerGrace is how long after its time limit a callback or program gets to be
	// ended, so that its own reason is the answer.
	handlerGrace = 3 * time.Second
	// killWait is how long the output of a program that was ended is waited for.
	killWait = time.Second
)

// handle runs a method that does not go to the local topics, beside the actor.
func (c *Cloud) handle(id *Identity, key, name string, t Target, payload []byte, timeout time.Duration) {
	c.running.Go(func() {
		ctx, cancel := context.WithTimeout(c.work, timeout)
		defer cancel()
		var a answer
		switch {
		case t.Builtin != "":
			a = c.builtin(ctx, id.opt().Name, t.Builtin, payload)
		case t.URL != "":
			a = callback(ctx, id.opt().Name, name, t.URL, payload)
		default:
			a = c.program(ctx, id, name, t.Exec, payload)
		}
		a, _ = sound(a) // its error is for a local client
		id.post(func() { id.answer(key, a) })
	})
}

// builtin answers one of the gateway's own methods.
func (c *Cloud) builtin(ctx context.Context, identity, name string, payload []byte) answer {
	result, err := c.cfg.Builtins[name](ctx, identity, payload)
	var refused *MethodError
	switch {
	case errors.As(err, &refused):
		return refusal(refused.Status, "%s", refused.Reason)
	case err != nil:
		return refusal(http.StatusInternalServerError, "%v", err)
	}
	body, err := json.Marshal(result)
	if err != nil {
		return refusal(http.StatusInternalServerError, "%v", err)
	}
	return answer{http.StatusOK, body}
}

// callback posts a method to a URL of the site; status and body of the response
// are the answer. Redirects are not followed and no proxy is used: the
// configuration names the very place.
func callback(ctx context.Context, identity, method, place string, payload []byte) answer {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, place, bytes.NewReader(payload))
	if err != nil {
		return refusal(http.StatusBadGateway, "callback: not a URL that can be called")
	}
	r.Header.Set("Content-Type", jsonType)
	r.Header.Set("Gatewayd-Identity", identity)
	r.Header.Set("Gatewayd-Method", method)
	client := http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(r)
	if err != nil {
		return unreachable(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		return refusal(http.StatusBadGateway, "callback answers with a redirect (%d)", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxMethodBody+1))
	if err != nil {
		return unreachable(ctx, err)
	}
	if len(body) > maxMethodBody {
		return refusal(http.StatusBadGateway, "callback's answer is larger than %d bytes", maxMethodBody)
	}
	return answer{resp.StatusCode, bytes.TrimSpace(body)}
}

func unreachable(ctx context.Context, err error) answer {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return refusal(http.StatusGatewayTimeout, "callback did not answer in time")
	}
	var where *url.Error // says the whole URL, which may hold a secret
	if errors.As(err, &where) {
		err = where.Err
	}
	return refusal(http.StatusBadGateway, "callback: %v", err)
}

// program runs a method's program: payload on stdin, answer on stdout. Its
// environment is PATH and the names of identity and method; nothing of the daemon's
// own is handed on.
func (c *Cloud) program(ctx context.Context, id *Identity, method string, argv []string, payload []byte) answer {
	select {
	case c.programs <- struct{}{}:
		defer func() { <-c.programs }()
	default:
		return refusal(http.StatusTooManyRequests, "%d programs are running already", maxPrograms)
	}
	out := &bounded{most: maxMethodBody}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GATEWAYD_IDENTITY=" + id.opt().Name, "GATEWAYD_METHOD=" + method}
	cmd.Stdin, cmd.Stdout = bytes.NewReader(payload), out
	cmd.WaitDelay = killWait
	ownGroup(cmd)
	err := cmd.Run()
	printed, over := out.printed()
	var exit *exec.ExitError
	switch {
	case over:
		return refusal(http.StatusBadGateway, "the program's answer is larger than %d bytes", maxMethodBody)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return refusal(http.StatusGatewayTimeout, "the program did not end in time")
	case errors.As(err, &exit):
		id.log().Warn("program of a method failed", zap.String("method", method), zap.Error(err))
		return failed(exit, printed)
	case err != nil:
		id.log().Warn("program of a method failed", zap.String("method", method), zap.Error(err))
		return refusal(http.StatusInternalServerError, "the program cannot be run")
	}
	return answer{http.StatusOK, printed}
}

// failed is the answer of a program that did not end with 0; what it printed comes
// along when it is JSON.
func failed(exit *exec.ExitError, out []byte) answer {
	reason := fmt.Sprintf("the program ended with %s", exit.ProcessState)
	if len(out) == 0 || len(out) > maxMethodBody/2 || !json.Valid(out) {
		return refusal(http.StatusInternalServerError, "%s", reason)
	}
	b, err := json.Marshal(map[string]any{"error": reason, "output": json.RawMessage(out)})
	if err != nil {
		return refusal(http.StatusInternalServerError, "%s", reason)
	}
	return answer{http.StatusInternalServerError, b}
}

// bounded keeps what a program prints, up to a limit; the write that goes beyond it
// fails, which ends the program's pipe. A program that was ended may have left
// others that still write.
type bounded struct {
	most int

	mu   sync.Mutex
	buf  []byte
	over bool
}

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.buf)+len(p) > b.most {
		b.over = true
		return 0, io.ErrShortWrite
	}
	b.buf = append(b.buf, p...)
	return len(p), nil
}

func (b *bounded) printed() (text []byte, over bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.TrimSpace(b.buf), b.over
}
