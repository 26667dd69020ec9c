package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"gatewayd/internal/config"
	"gatewayd/internal/downstream"
	"gatewayd/internal/hub"
	"gatewayd/internal/queue"
)

func newRouteCommand() *cobra.Command {
	var file string
	var properties []string
	cmd := &cobra.Command{
		Use:   "route -c FILE TOPIC [PAYLOAD]",
		Short: "Show what would happen to a message: route, identity, properties, body",
		Long: `Show what would happen to a message that a sensor publishes: which route takes
it, under which identity it goes to the hub, with which properties and body.

Nothing is sent or stored, and no gateway has to run. PAYLOAD is the body; - is
the standard input, and without it the body is empty. only_changes takes the
message for the first one of its topic. Exit code 1 says that the message would
be refused.`,
		Args: usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			a := downstream.Arrival{Topic: args[0]}
			if a.Properties, err = parseProperties(properties); err != nil {
				return err
			}
			if len(args) == 2 {
				if a.Payload, err = payloadArgument(args[1], cmd.InOrStdin()); err != nil {
					return err
				}
			}
			return previewRoute(cmd, cfg, a)
		},
	}
	addConfigFlag(cmd, &file)
	cmd.Flags().StringArrayVarP(&properties, "property", "p", nil, "a property KEY=VALUE of the sensor; may be repeated")
	return cmd
}

// maxPayloadArgument is above every limit, so that a payload which is too large
// for the gateway is refused in the gateway's words.
const maxPayloadArgument = 1 << 20

func payloadArgument(text string, stdin io.Reader) ([]byte, error) {
	if text != "-" {
		return []byte(text), nil
	}
	return io.ReadAll(io.LimitReader(stdin, maxPayloadArgument))
}

func parseProperties(texts []string) ([]queue.Property, error) {
	var all []queue.Property
	for _, text := range texts {
		key, value, found := strings.Cut(text, "=")
		if !found {
			return nil, &exitError{exitUsage, fmt.Errorf("--property %q is not KEY=VALUE", text)}
		}
		all = append(all, queue.Property{Key: key, Value: value})
	}
	return all, nil
}

func previewRoute(cmd *cobra.Command, cfg *config.Config, a downstream.Arrival) error {
	router, err := newRouter(cfg)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	ledger := downstream.NewLedger(0, 0)
	a.Client = ledger.Source("preview").Client("sensor")
	v, err := downstream.NewGate(router, nil, ledger, gateLimits(cfg), zap.NewNop()).Preview(cmd.Context(), a)
	out := cmd.OutOrStdout()
	if err != nil {
		fmt.Fprintf(out, "topic      %s\nfate       refused: %v\n", a.Topic, err)
		return &exitError{code: exitRunning}
	}
	writePreview(out, cfg, v)
	return nil
}

func writePreview(w io.Writer, cfg *config.Config, v downstream.Preview) {
	m := &v.Message
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-11s%s\n", name, fmt.Sprintf(format, args...))
	}
	line("topic", "%s", m.Topic)
	route := m.Route
	for _, r := range cfg.Routes {
		if r.Name == m.Route {
			route += " (match: " + r.Match + ")"
		}
	}
	line("route", "%s", route)
	if v.Reason != "" {
		line("fate", "%s: %s", v.Fate, v.Reason)
	} else {
		line("fate", "%s", v.Fate)
	}
	if v.Fate == "not wanted" || v.Fate == "dropped" {
		return
	}
	line("identity", "%s", v.Identity)
	for _, p := range m.Properties {
		line("property", "%s=%s", p.Key, p.Value)
	}
	optional := func(name, value string) {
		if value != "" {
			line(name, "%s", value)
		}
	}
	optional("type", m.ContentType)
	optional("encoding", m.ContentEncoding)
	optional("output", m.Output)
	if m.Priority > 0 {
		line("priority", "%d", m.Priority)
	}
	if m.MaxAge > 0 {
		line("max age", "%s", m.MaxAge.Round(time.Millisecond))
	}
	previewPack(line, m)
	body := m.Payload
	if m.ContentEncoding == "gzip" {
		line("body", "%d bytes of gzip, which are:", len(body))
		body = unzip(body)
	} else {
		line("body", "%d bytes:", len(body))
	}
	if !utf8.Valid(body) {
		fmt.Fprintf(w, "%q\n", body)
		return
	}
	fmt.Fprintf(w, "%s\n", body)
}

// previewPack says with what the message travels, and as what.
func previewPack(line func(name, format string, args ...any), m *queue.Message) {
	if m.Pack.MaxBytes == 0 {
		return
	}
	what := "array"
	if m.Pack.Lines {
		what = "lines"
	}
	if m.Pack.Gzip {
		what += ", compressed"
	}
	line("pack", "with others of the route, up to %d bytes or %v (%s), as:", m.Pack.MaxBytes, m.Pack.MaxDelay, what)
	as := *m
	as.Accepted, as.AcceptedTrusted = time.Now(), true
	line("element", "%s", hub.AppendElement(nil, &as))
}

// unzip is for showing; a body that is no gzip is shown as it is.
func unzip(b []byte) []byte {
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return b
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxPayloadArgument))
	if err != nil {
		return b
	}
	return plain
}
