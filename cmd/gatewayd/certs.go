package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
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
	err  error                 // why, nil with cred
}

// fileFindings is what the files themselves have against them.
type fileFindings struct {
	cred               *certstore.Credential
	err                error
	problems, warnings []string
}

func look(src certstore.Source) (f fileFindings, err error) {
	f.cred, f.err = certstore.Load(src)
	f.problems, f.warnings = certstore.InspectFiles(src)
	return f, nil
}

// certificates reads every identity's files, once.
func (r *patientReader) certificates(cfg *config.Config, now time.Time) []certificate {
	all := make([]certificate, len(cfg.Identities))
	creds := make(map[string]*certstore.Credential, len(all))
	for i := range cfg.Identities {
		id := &cfg.Identities[i]
		c := &all[i]
		c.Identity, c.HubID = id.Name, id.HubID()
		found, err := inTime(r, func() (fileFindings, error) { return look(certstore.Source(id.Certificate)) }, filesOf(id.Certificate)...)
		if err == nil {
			err = found.err
		}
		if err != nil {
			c.Problems, c.err = append(c.Problems, err.Error()), err
		} else {
			creds[id.Name] = found.cred
			r := certstore.Inspect(found.cred, wantedName(id), now)
			c.Problems, c.Warnings = append(c.Problems, r.Problems...), append(c.Warnings, r.Warnings...)
			r.Problems, r.Warnings = nil, nil
			c.Report, c.cred = &r, found.cred
		}
		c.Problems, c.Warnings = append(c.Problems, found.problems...), append(c.Warnings, found.warnings...)
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
		Short: "List the certificates of all identities as they are on disk; exit 0 only without problems",
		Long: `List the certificates of all identities as they are on disk, with what is wrong
with them. No gateway has to run, and none is asked.

Exit codes: 0 no certificate has a problem, 1 one has, 2 bad usage or
configuration. Warnings, which --json shows, are none.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			all := newPatientReader().certificates(cfg, time.Now())
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(all)
			} else {
				err = writeCertificates(cmd.OutOrStdout(), all)
			}
			if err == nil && slices.ContainsFunc(all, func(c certificate) bool { return len(c.Problems) > 0 }) {
				err = &exitError{code: exitRunning}
			}
			return err
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
