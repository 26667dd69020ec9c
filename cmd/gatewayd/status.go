package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatewayd/internal/config"
)

func newStatusCommand() *cobra.Command {
	v := statusView{}
	var watch bool
	cmd := &cobra.Command{
		Use:   "status [-c FILE]",
		Short: "Show what a running gateway says of itself; exit 0 only when nothing is wrong",
		Long: `Show what a running gateway says of itself: over the control socket in the
state_dir of the configuration file, or from admin.listen. Without -c it asks at
the default admin address.

--watch shows it again and again until Ctrl-C: in place on a terminal, as blocks
elsewhere. The exit code is then that of what was shown last.

Exit codes: 0 healthy, 1 something is wrong or the gateway does not answer,
2 bad usage or configuration.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v.out = cmd.OutOrStdout()
			defaults := config.Defaults()
			v.cfg = &defaults
			if v.file != "" {
				var err error
				if v.cfg, err = peekConfig(v.file); err != nil {
					return err
				}
			}
			if watch {
				return v.watch(cmd.Context())
			}
			return v.show(cmd.Context())
		},
	}
	cmd.Flags().StringVarP(&v.file, "config", "c", "", "configuration file, for its state_dir and admin.listen")
	cmd.Flags().BoolVar(&v.asJSON, "json", false, "print the answer of /status as it is")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again every --interval until Ctrl-C")
	cmd.Flags().DurationVar(&v.every, "interval", 2*time.Second, "how often --watch looks, at least 200ms")
	return cmd
}

// statusView shows the report of a running gateway.
type statusView struct {
	out    io.Writer
	cfg    *config.Config
	file   string
	asJSON bool
	every  time.Duration
}

// show prints one report. Something that is wrong is exit code 1.
func (v *statusView) show(ctx context.Context) error {
	raw, err := v.ask(ctx)
	if err != nil {
		return err
	}
	r, err := parseReport(raw)
	if err != nil {
		return err
	}
	if v.asJSON {
		_, err = v.out.Write(raw)
	} else {
		err = writeStatus(v.out, r)
	}
	if err == nil && !r.Healthy {
		err = &exitError{code: exitRunning}
	}
	return err
}

// ask prefers the control socket of the state folder: it is that gateway's for sure,
// while anybody's may answer at the admin address.
func (v *statusView) ask(ctx context.Context) ([]byte, error) {
	address := v.cfg.Admin.Listen
	if v.file != "" {
		text, err := askControl(ctx, v.cfg, "status", controlRequest{})
		if err == nil {
			var b bytes.Buffer
			err = json.Indent(&b, []byte(text), "", "  ")
			b.WriteByte('\n')
			return b.Bytes(), err
		}
		if !address.Enabled() {
			return nil, fmt.Errorf("%w (%s), and admin.listen is empty", err, v.cfg.StateDir)
		}
		raw, other := askAdmin(ctx, address, "/status")
		if other != nil {
			return nil, fmt.Errorf("%w (%s), and %w", err, v.cfg.StateDir, other)
		}
		return raw, nil
	}
	return askAdmin(ctx, address, "/status")
}

func parseReport(raw []byte) (*report, error) {
	var r report
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("the answer of the running gateway is not a status: %w", err)
	}
	return &r, nil
}

// maxAnswer bounds what a command reads from a gateway: a status with a thousand
// identities is about 3 MB.
const maxAnswer = 64 << 20

// askAdmin gets one page of a running gateway.
func askAdmin(ctx context.Context, a config.Address, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, a.Network, a.Address)
	}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://gatewayd"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no gateway answers at %s (admin.listen): %w", a, errors.Unwrap(err))
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s to %s", a, resp.Status, path)
	}
	return raw, err
}

// writeStatus prints the report for people: what is wrong with an identity stands
// below its row, where it does not make every row long.
func writeStatus(out io.Writer, r *report) error {
	fmt.Fprintf(out, "gatewayd %s, up %s, clock %s", r.Version, r.Now.Sub(r.Started).Round(time.Second), r.Clock)
	if r.Disk.Trouble != "" {
		fmt.Fprintf(out, ", disk: %s", r.Disk.Trouble)
	}
	fmt.Fprint(out, "\n\n")
	rows, below := identityRows(r)
	for i, row := range rows {
		fmt.Fprintln(out, row)
		for _, text := range below[i] {
			fmt.Fprintf(out, "    %s\n", visible(text))
		}
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	writeAzureClients(w, r)
	fmt.Fprintf(w, "\nSOURCE\tACCEPTED\tREFUSED\n")
	for _, s := range r.Sources {
		refused := uint64(0)
		for _, n := range s.Refused {
			refused += n
		}
		fmt.Fprintf(w, "%s\t%d\t%d\n", s.Source, s.Received, refused)
	}
	err := w.Flush()
	// What concerns no identity.
	if r.FirstFault != "" && !slices.ContainsFunc(r.Identities, func(id identityReport) bool { return id.FirstFault != "" }) {
		fmt.Fprintf(out, "\n%s\n", visible(r.FirstFault))
	}
	return err
}

// writeAzureClients lists who may log in with an Azure SDK, and who has.
func writeAzureClients(w io.Writer, r *report) {
	if len(r.AzureClients) == 0 {
		return
	}
	fmt.Fprintf(w, "\nAZURE SDK CLIENT\tIDENTITY\tSTATE\tFOR\tLOGIN\tTOKEN UNTIL\tREMOTE\tLISTENS TO\n")
	for _, c := range r.AzureClients {
		state, since, until := "not connected", "-", "-"
		if c.Connected {
			state, since = "connected", r.Now.Sub(*c.Since).Round(time.Second).String()
		}
		if c.Expires != nil {
			until = c.Expires.Format(time.DateTime)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.ClientID, c.Identity, state, since, orDash(c.Login), until,
			orDash(c.Remote), orDash(strings.Join(c.Subscribed, " ")))
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// identityRows are the lines of the table, the header first, and what belongs below
// each.
func identityRows(r *report) (rows []string, below map[int][]string) {
	var b strings.Builder
	below = make(map[int][]string)
	w := tabwriter.NewWriter(&b, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "IDENTITY\tSTATE\tFOR\tOVER\tCERT DAYS\tDELIVERED\tMIB THIS MONTH\tQUEUED\tOLDEST\tASIDE\n")
	for i, id := range r.Identities {
		days := "-"
		if c := id.Certificate.Current; c != nil {
			days = fmt.Sprintf("%.1f", c.DaysLeft)
		}
		month := id.Wire.ThisMonth.plus(id.Wire.Undated)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%.1f\t%d\t%s\t%d\n", id.Name, id.State, r.Now.Sub(id.Since).Round(time.Second), orDash(id.Transport), days,
			id.Delivered, float64(month.Sent+month.Received)/(1<<20), id.Queue.Messages, time.Duration(id.Queue.OldestSeconds)*time.Second, id.Queue.Aside)
		below[i+1] = nonEmpty(id.FirstFault, id.Hint)
		if id.Detour != "" {
			below[i+1] = append(below[i+1], "not over mqtt: "+id.Detour)
		}
	}
	for i, name := range r.Unconfigured {
		fmt.Fprintf(w, "%s\tnot configured\t-\t-\t-\t-\t-\t-\t-\t-\n", name)
		below[1+len(r.Identities)+i] = []string{"its messages are kept until gatewayd queue drop"}
	}
	_ = w.Flush() // into memory
	return strings.Split(strings.TrimRight(b.String(), "\n"), "\n"), below
}
