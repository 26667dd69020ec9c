package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatewayd/internal/config"
)

func newStatusCommand() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status [-c FILE]",
		Short: "Show what a running gateway says of itself; exit 0 only when nothing is wrong",
		Long: `Show what a running gateway says of itself. Without -c it asks at the default admin address.
Exit codes: 0 healthy, 1 something is wrong or the gateway does not answer, 2 bad usage or configuration.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			address := config.Defaults().Admin.Listen
			if file != "" {
				cfg, err := loadConfig(file)
				if err != nil {
					return err
				}
				address = cfg.Admin.Listen
			}
			if !address.Enabled() {
				return &exitError{exitUsage, errors.New("admin.listen is empty: a running gateway cannot be asked")}
			}
			raw, err := askAdmin(cmd.Context(), address, "/status")
			if err != nil {
				return err
			}
			var r report
			if err := json.Unmarshal(raw, &r); err != nil {
				return fmt.Errorf("status: the answer of %s is not a status: %w", address, err)
			}
			if asJSON {
				_, err = cmd.OutOrStdout().Write(raw)
			} else {
				err = writeStatus(cmd.OutOrStdout(), &r)
			}
			if err == nil && !r.Healthy {
				err = &exitError{code: exitRunning}
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration file, for its admin.listen")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the answer of /status as it is")
	return cmd
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

func writeStatus(out io.Writer, r *report) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "gatewayd %s, up %s, clock %s", r.Version, r.Now.Sub(r.Started).Round(time.Second), r.Clock)
	if r.Disk.Trouble != "" {
		fmt.Fprintf(w, ", disk: %s", r.Disk.Trouble)
	}
	fmt.Fprintf(w, "\n\nIDENTITY\tSTATE\tFOR\tCERT DAYS\tDELIVERED\tQUEUED\tOLDEST\tASIDE\tFIRST FAULT\n")
	for _, id := range r.Identities {
		days := "-"
		if c := id.Certificate.Current; c != nil {
			days = fmt.Sprintf("%.1f", c.DaysLeft)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%d\t%s\n", id.Name, id.State, r.Now.Sub(id.Since).Round(time.Second), days,
			id.Delivered, id.Queue.Messages, (time.Duration(id.Queue.OldestSeconds) * time.Second).String(), id.Queue.Aside, orDash(id.FirstFault))
		if id.Hint != "" {
			fmt.Fprintf(w, "\t\t\t\t\t\t\t\t  %s\n", id.Hint)
		}
	}
	for _, name := range r.Unconfigured {
		fmt.Fprintf(w, "%s\tnot configured\t-\t-\t-\t-\t-\t-\tits messages are kept until gatewayd queue drop\n", name)
	}
	writeAzureClients(w, r)
	fmt.Fprintf(w, "\nSOURCE\tACCEPTED\tREFUSED\n")
	for _, s := range r.Sources {
		refused := uint64(0)
		for _, n := range s.Refused {
			refused += n
		}
		fmt.Fprintf(w, "%s\t%d\t%d\n", s.Source, s.Received, refused)
	}
	return w.Flush()
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
