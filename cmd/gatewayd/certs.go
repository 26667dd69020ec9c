package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatewayd/internal/certstore"
	"gatewayd/internal/config"
)

// certificate is what one identity's files hold.
type certificate struct {
	Identity string `json:"identity"`
	HubID    string `json:"hub_id"` // what its common name is compared with
	// Report is nil when the files hold no usable pair; Problems says why. Its
	// own problems and warnings have moved to the ones here.
	Report   *certstore.Report `json:"certificate"`
	Problems []string          `json:"problems,omitempty"`
	Warnings []string          `json:"warnings,omitempty"`

	cred *certstore.Credential // nil with Report
}

// readCertificates reads every identity's files, once and without waiting.
func readCertificates(cfg *config.Config, now time.Time) []certificate {
	all := make([]certificate, len(cfg.Identities))
	creds := make(map[string]*certstore.Credential, len(all))
	for i := range cfg.Identities {
		id := &cfg.Identities[i]
		c := &all[i]
		c.Identity, c.HubID = id.Name, id.HubID()
		src := certstore.Source(id.Certificate)
		cred, err := certstore.Load(src)
		if err != nil {
			c.Problems = append(c.Problems, err.Error())
		} else {
			creds[id.Name] = cred
			r := certstore.Inspect(cred, wantedName(id), now)
			c.Problems, c.Warnings = append(c.Problems, r.Problems...), append(c.Warnings, r.Warnings...)
			r.Problems, r.Warnings = nil, nil
			c.Report, c.cred = &r, cred
		}
		problems, warnings := certstore.InspectFiles(src)
		c.Problems, c.Warnings = append(c.Problems, problems...), append(c.Warnings, warnings...)
	}
	shared := certstore.Shared(creds)
	for i := range all {
		if other, ok := shared[all[i].Identity]; ok {
			all[i].Problems = append(all[i].Problems, fmt.Sprintf("identity %q holds the same certificate; each needs its own", other))
		}
	}
	return all
}

// wantedName is the common name that an identity's certificate must have; ""
// for any.
func wantedName(id *config.Identity) string {
	if id.AllowCNMismatch {
		return ""
	}
	return id.HubID()
}

func newCertsCommand() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "certs -c FILE",
		Short: "List the certificates of all identities as they are on disk",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			all := readCertificates(cfg, time.Now())
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(all)
			}
			return writeCertificates(cmd.OutOrStdout(), all)
		},
	}
	addConfigFlag(cmd, &file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func writeCertificates(w io.Writer, all []certificate) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IDENTITY\tCN\tISSUER\tSERIAL\tFROM\tUNTIL\tDAYS LEFT\tPROBLEMS")
	for _, c := range all {
		problems := "-"
		if len(c.Problems) > 0 {
			problems = strings.Join(c.Problems, "; ")
		}
		if c.Report == nil {
			fmt.Fprintf(t, "%s\t-\t-\t-\t-\t-\t-\t%s\n", c.Identity, problems)
			continue
		}
		r := c.Report
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%.1f\t%s\n", c.Identity, r.CommonName, r.Issuer, r.Serial,
			date(r.NotBefore), date(r.NotAfter), r.DaysLeft, problems)
	}
	return t.Flush()
}

func date(t time.Time) string { return t.UTC().Format("2006-01-02") }
