package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	cdplog "github.com/chromedp/cdproto/log"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

// browser is a headless Chromium with one tab, which notes what no page of ours
// should do: complain, ask, or go elsewhere.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	trouble  []string
	requests map[string]int // by host
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	path := tool(t, "chromium", "chromium-browser", "google-chrome")
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.UserDataDir(t.TempDir()), chromedp.Flag("disable-component-update", true), chromedp.WSURLReadTimeout(time.Minute))
	ctx, stop := context.WithTimeout(context.Background(), 3*time.Minute)
	ctx, closeAllocator := chromedp.NewExecAllocator(ctx, options...)
	ctx, closeTab := chromedp.NewContext(ctx)
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil {
			t.Logf("browser: %v", err)
		}
		closeTab()
		closeAllocator()
		stop()
	})
	b := &browser{t: t, ctx: ctx, requests: make(map[string]int)}
	check(t, chromedp.Listen(ctx, b.note))
	check(t, chromedp.Do(ctx, chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
		return err
	})))
	return b
}

// note runs in the loop that reads from the browser.
func (b *browser) note(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	say := func(format string, args ...any) { b.trouble = append(b.trouble, fmt.Sprintf(format, args...)) }
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		say("console.%s", e.Type)
	case *runtime.EventExceptionThrown:
		say("exception: %+v", e.ExceptionDetails)
	case *cdplog.EventEntryAdded:
		say("browser log: %s %s", e.Entry.Text, e.Entry.URL)
	case *page.EventJavascriptDialogOpening:
		say("a dialog: %s", e.Message)
	case *network.EventRequestWillBeSent:
		if u, err := url.Parse(e.Request.URL); err == nil {
			b.requests[u.Host]++
		}
	}
}

func (b *browser) open(url string) {
	b.t.Helper()
	check(b.t, chromedp.Do(b.ctx, chromedp.Navigate(url)))
}

// look evaluates an expression that gives a text.
func (b *browser) look(js string) string {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[any](js))
	if err != nil {
		b.t.Fatalf("%s: %v", js, err)
	}
	return fmt.Sprint(v)
}

// sees waits until an expression is true.
func (b *browser) sees(what, js string) {
	b.t.Helper()
	for end := time.Now().Add(30 * time.Second); b.look("!!("+js+")") != "true"; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("the page does not show %s; it shows\n%s", what, b.look("document.body.innerText"))
		}
	}
}

// as sets the colours and the size of the window.
func (b *browser) as(scheme string, width int64) {
	b.t.Helper()
	check(b.t, chromedp.Do(b.ctx, chromedp.EmulateViewport(width, 800), chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		return err
	})))
}

// accessible runs axe over the page as it is, in light, dark and on a phone.
func (b *browser) accessible(what string) {
	b.t.Helper()
	file := filepath.Join("..", "..", "internal", "statuspage", "axe", "node_modules", "axe-core", "axe.min.js")
	axe, err := os.ReadFile(file)
	if err != nil {
		if os.Getenv("CI") != "" {
			b.t.Fatalf("%v: make node installs it", err)
		}
		b.t.Logf("accessibility is not checked: %v: make node installs it", err)
		return
	}
	for _, view := range []struct {
		scheme string
		width  int64
	}{{"light", 1280}, {"dark", 1280}, {"light", 390}, {"dark", 390}} {
		b.as(view.scheme, view.width)
		if wide := b.look("document.documentElement.scrollWidth > document.documentElement.clientWidth"); wide != "false" {
			b.t.Errorf("%s scrolls sideways at a width of %d", what, view.width)
		}
		b.look("typeof axe === 'undefined' && (() => {" + string(axe) + "\n})() || 1")
		found, err := chromedp.Run(b.ctx, chromedp.Evaluate[string](`axe.run(document, {resultTypes: ["violations"]}).then(r => JSON.stringify(
			{passes: r.passes.length, violations: r.violations.map(v => v.id + ": " + v.help + " " + v.nodes.slice(0, 3).map(n => n.html + " " + n.failureSummary).join(" | "))}))`,
			chromedp.EvalAwaitPromise))
		check(b.t, err)
		var result struct {
			Passes     int
			Violations []string
		}
		check(b.t, json.Unmarshal([]byte(found), &result))
		if result.Passes < 15 {
			b.t.Errorf("%s: axe found only %d things to look at", what, result.Passes)
		}
		for _, v := range result.Violations {
			b.t.Errorf("%s, %s, width %d: %s", what, view.scheme, view.width, v)
		}
	}
}

func row(name string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("#identities tr")].find(r => r.querySelector("a").textContent === %q)`, name)
}

// A technician's visit in a real browser: what the page shows follows a real
// gateway, live, and the browser has nothing to complain about.
func TestStatusPageInABrowser(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	s := newPlant(t, hubtest.Options{MaxInbound: -1}, "press-7", "oven-2")
	p := s.runAdmin()
	f := s.fleet(6, 10, 64, 20*time.Millisecond)
	base := "http://" + s.admin

	b.as("light", 1280)
	b.open(base + "/")
	b.sees("that it is live", `document.querySelector("#pulse.live")`)
	b.sees("both identities connected", row("press-7")+`?.innerText.includes("connected") && `+row("oven-2")+`?.innerText.includes("connected")`)
	b.sees("that nothing is wrong", `document.querySelector("#verdict").innerText === "Nothing is wrong."`)
	b.sees("sensors", `document.querySelectorAll("#sensors tr").length === 6`)
	in := row("press-7") + `.querySelector(".c-in").textContent.replace(/,/g, "")`
	first := b.look(in)
	b.sees("more messages without being loaded again", in+" > "+first+" + 20")
	b.sees("a chart", row("press-7")+`.querySelector(".spark .i").getAttribute("d").startsWith("M")`)
	b.sees("a rate", `+document.querySelector("#t-in").textContent.replace(/,/g, "") > 10`)
	b.sees("routes with counters", `+document.querySelector("#routes td.num").textContent.replace(/,/g, "") > 20`)
	b.accessible("the overview")

	// A new certificate, and then one of a CA that the hub does not know.
	b.as("light", 1280)
	b.open(base + "/identity?name=press-7")
	b.sees("the identity", `document.querySelector("#t-state").textContent === "connected"`)
	s.issue("press-7", certtest.Leaf{CN: "press-7"})
	b.sees("the rotation", `document.querySelector("#t-rotations").textContent === "1" && document.querySelector("#t-rotations-more").textContent.startsWith("gap ")`)
	b.sees("the rotation in its history", `document.querySelector("#events").innerText.includes("certificate committed")`)
	other := must(certtest.NewCA("another CA"))(t)
	check(t, must(other.Issue(certtest.Leaf{CN: "press-7"}))(t).Write(s.path("press-7.pem"), s.path("press-7.key")))
	b.sees("the refused certificate", `document.querySelector("#verdict.bad")?.innerText.includes("new certificate missed") && document.querySelector("#next").innerText.includes("missed")`)
	b.sees("that it is connected all the same", `document.querySelector("#t-state").textContent === "connected"`)
	b.sees("the refusal in its history", `document.querySelector("#events").innerText.includes("candidate missed")`)
	b.sees("the way to the hub", `document.querySelector("#way").innerText.includes("127.0.0.1") && document.querySelector("#way").innerText.includes("sent")`)
	b.accessible("an identity's page")
	b.as("light", 1280)
	b.open(base + "/")
	b.sees("the first fault on top", `document.querySelector("#verdict.bad a")?.textContent === "press-7" && document.querySelector("#verdict").innerText.includes("new certificate missed")`)
	b.sees("the identity in trouble first", `document.querySelector("#identities tr").innerText.includes("press-7")`)

	// What anybody on the local network may send stays text.
	evil := `sensors/press-7/<img src=x onerror=alert(1)>`
	if code := s.post(evil, `"><script>alert(2)</script>`, ""); code != 202 {
		t.Fatalf("the hostile topic is answered with %d", code)
	}
	evilClient := &sensor{name: `<script>alert(3)</script>"'&`, topic: "sensors/press-7/x", address: s.mqtt, window: 1, size: 10, pace: time.Second, tries: map[int]int{}}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { evilClient.run(ctx) })
	b.sees("the hostile sensor as text", `document.querySelector("#sensors").innerText.includes("<script>alert(3)")`)
	stop()
	running.Wait()

	// By keyboard alone: the way past the header, and into the filter.
	check(t, chromedp.Do(b.ctx, chromedp.KeyEvent(kb.Tab)))
	b.sees("a way past the header", `document.activeElement.className === "skip" && document.activeElement.getBoundingClientRect().left >= 0`)
	check(t, chromedp.Do(b.ctx, chromedp.Focus("#find"), chromedp.KeyEvent("oven")))
	b.sees("only what the filter wants", `[...document.querySelectorAll("#identities tr")].filter(r => !r.hidden).length === 1`)

	f.end()

	// An identity goes, and with a page open the gateway stops as quickly as ever.
	s.names = []string{"press-7"}
	s.hub.RemoveDevice("oven-2")
	if code := s.post("sensors/oven-2/left", "behind", ""); code != 202 {
		t.Fatalf("a reading for a device that is gone: %d", code)
	}
	s.writeConfig("")
	if code, out := s.exitCode("reload", "-c", "config.yaml"); code != exitOK {
		t.Fatalf("reload exits with %d: %s", code, out)
	}
	b.sees("that the identity is gone and its messages are not", `document.querySelectorAll("#identities tr").length === 1 && document.querySelector("#unconfigured").innerText.includes("oven-2")`)
	b.ended(s.admin)
	began := time.Now()
	if code := p.stop(); code != exitOK || time.Since(began) > 8*time.Second {
		t.Errorf("exit code %d after %v", code, time.Since(began))
	}
	b.sees("that the gateway is away", `document.querySelector("#pulse.lost")?.innerText.includes("no connection")`)
}

// ended says what the browser noted. It never asked another host.
func (b *browser) ended(host string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, line := range b.trouble {
		b.t.Errorf("the browser complains: %s", line)
	}
	if b.requests[host] < 5 {
		b.t.Errorf("requests: %v", b.requests)
	}
	for h := range b.requests {
		if h != host && h != "" { // data: has none
			b.t.Errorf("the page asked %s", h)
		}
	}
}

// With tokens the page offers what may be changed to who has logged in.
func TestChangingThroughTheBrowserNeedsALogin(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	s := newPlant(t, hubtest.Options{}, "press-7")
	const token = "anna-has-a-long-token"
	s.write("tokens", "anna "+token+"\n")
	config := string(must(os.ReadFile(s.path("config.yaml")))(t))
	s.write("config.yaml", strings.Replace(config, "admin: {", "admin: {token_file: tokens, ", 1))
	p := s.runAdmin()
	b.open("http://" + s.admin + "/")
	b.sees("that it is live", `document.querySelector("#pulse.live")`)
	b.sees("a way to log in", `document.querySelector(".act a")?.textContent === "Log in" && !document.querySelector(".act form")`)
	check(t, chromedp.Do(b.ctx, chromedp.Click(".act a"), chromedp.SendKeys("#token", "not-the-right-token\r")))
	b.sees("that the token is wrong", `document.querySelector("[role=alert]")?.innerText.includes("not a token")`)
	b.accessible("the login")
	check(t, chromedp.Do(b.ctx, chromedp.SendKeys("#token", token+"\r")))
	b.sees("what may be changed", `document.querySelectorAll(".act form[data-act]").length === 2`)
	b.sees("that it is live", `document.querySelector("#pulse.live")`)
	check(t, chromedp.Do(b.ctx, chromedp.Click(`[data-act="/act/reload"] button`)))
	b.sees("what the reload did", `document.querySelector("#acted").textContent.includes("nothing changed")`)
	check(t, chromedp.Do(b.ctx, chromedp.SetValue(`[name=level]`, "debug"), chromedp.Click(`[data-act="/act/log-level"] button`)))
	b.sees("the new level", `document.querySelector("#acted").textContent.includes("log level debug")`)
	if !strings.Contains(p.log.String(), `"by":"anna"`) || strings.Contains(p.log.String(), token) {
		t.Errorf("the log does not say who, or says too much:\n%s", p.log.String())
	}
	b.mu.Lock()
	b.trouble = nil // the wrong token's 401 is in the browser's log
	b.mu.Unlock()
	b.ended(s.admin)
}
