package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"gatewayd/internal/certstore"
	"gatewayd/internal/config"
	"gatewayd/internal/hub"
)

func newCheckCommand() *cobra.Command {
	var file string
	var connect bool
	cmd := &cobra.Command{
		Use:   "check -c FILE",
		Short: "Say everything that is wrong with a configuration and its certificates",
		Long: `Say everything that is wrong with a configuration and its certificates.

Nothing is started, bound or written, and nothing is sent without --connect.
Each problem is one line on the standard error with file, key path and reason;
exit code 0 means that there is none, 2 that there is one.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file)
			if err != nil {
				return withMissing(err)
			}
			c := checker{cfg: cfg, file: file, out: cmd.OutOrStdout(), files: newPatientReader()}
			certs := c.certificates(time.Now())
			c.trust()
			c.local()
			if connect {
				c.connect(cmd.Context(), certs)
			}
			return c.verdict()
		},
	}
	addConfigFlag(cmd, &file)
	cmd.Flags().BoolVar(&connect, "connect", false,
		"also connect to the hub as each identity; a gatewayd that is connected as it is cut off for a moment")
	return cmd
}

// withMissing adds the certificate files that are missing, which do not keep a gateway from starting, to what is wrong
// with a configuration.
func withMissing(err error) error {
	var bad *config.Error
	if !errors.As(err, &bad) {
		return err
	}
	all := []error{err}
	for _, w := range bad.Warnings {
		if ofCertificate(w) {
			all = append(all, errors.New(w.String()))
		}
	}
	return &exitError{exitUsage, errors.Join(all...)}
}

// ofCertificate says that a warning is about the files of an identity.
func ofCertificate(w config.Problem) bool { return strings.Contains(w.Path, "].certificate.") }

// checker goes through a configuration that loaded.
type checker struct {
	cfg      *config.Config
	file     string // as the user wrote it
	out      io.Writer
	files    *patientReader
	problems []error
	named    []string // their paths
}

func (c *checker) problem(path, reason string) {
	c.named = append(c.named, path)
	c.problems = append(c.problems, errors.New(located(c.file, path, reason).String()))
}

// certificates reads and describes what every identity has.
func (c *checker) certificates(now time.Time) []certificate {
	all := c.files.certificates(c.cfg, now)
	for i, cert := range all {
		path := fmt.Sprintf("identities[%d].certificate", i)
		for _, p := range cert.Problems {
			c.problem(path+fileKey(c.cfg.Identities[i].Certificate, p), p)
		}
		describe(c.out, cert, path)
	}
	return all
}

// fileKey is the key under a certificate whose file a problem is about: its text then begins with the path. "" for
// what is about the pair.
func fileKey(c config.Certificate, problem string) string {
	for _, f := range []struct{ key, path string }{
		{".cert", c.Cert}, {".key", c.Key}, {".pkcs12", c.PKCS12}, {".passphrase_file", c.PassphraseFile},
	} {
		if f.path != "" && strings.HasPrefix(problem, f.path+" ") {
			return f.key
		}
	}
	return ""
}

func (c *checker) verdict() error {
	for _, w := range c.cfg.Warnings {
		switch {
		case !ofCertificate(w):
			fmt.Fprintf(c.out, "warning: %s\n", w)
		case !slices.Contains(c.named, w.Path): // reading a certificate ends at the first file that is missing
			c.problems = append(c.problems, errors.New(w.String()))
		}
	}
	if err := errors.Join(c.problems...); err != nil {
		return &exitError{exitUsage, err}
	}
	fmt.Fprintf(c.out, "%s: ok\n", c.file)
	return nil
}

// atOnce is how many identities are tried at the same time: a hub that cannot
// be reached costs each of them a long wait.
const atOnce = 8

// connect tries the way to the hub as each identity whose certificate is
// without a problem.
func (c *checker) connect(ctx context.Context, certs []certificate) {
	results := make([]hub.ProbeResult, len(certs))
	skipped := make([]string, len(certs))
	var wg sync.WaitGroup
	free := make(chan struct{}, atOnce)
	for i := range certs {
		id := &c.cfg.Identities[i]
		pool, err := c.files.trust(id.Hub)
		switch {
		case len(certs[i].Problems) > 0:
			skipped[i] = "its certificate has problems"
			continue
		case err != nil:
			skipped[i] = "its roots have problems"
			continue
		}
		free <- struct{}{}
		wg.Go(func() {
			cfg := sessionConfig(*id, certstore.WallClock(), func() *x509.CertPool { return pool }, c.cfg.Queue.SetAsideAfter)
			results[i] = hub.Probe(ctx, cfg, certs[i].cred)
			<-free
		})
	}
	wg.Wait()
	for i, r := range results {
		path := fmt.Sprintf("identities[%d]", i)
		if skipped[i] != "" {
			fmt.Fprintf(c.out, "%s: not tried, %s\n", certs[i].Identity, skipped[i])
			continue
		}
		describeProbe(c.out, certs[i].Identity, r)
		if f := r.Fault; f != nil {
			reason := "cannot connect: " + f.Error()
			if f.Hint != "" {
				reason += "; " + f.Hint
			}
			c.problem(path, reason)
		}
	}
}

// describeProbe tells the steps that worked, and where one way was given up for the
// other.
func describeProbe(out io.Writer, name string, r hub.ProbeResult) {
	blocked := r.Blocked
	for _, s := range r.Steps {
		if blocked != nil && s.Over == hub.OverWebSocket {
			fmt.Fprintf(out, "%s: %s is blocked: %v\n", name, hub.OverTLS, blocked)
			blocked = nil
		}
		fmt.Fprintf(out, "%s: %s: %s (%s)\n", name, s.Step, s.Detail, s.Took.Round(time.Millisecond))
	}
	if blocked != nil {
		fmt.Fprintf(out, "%s: %s is blocked: %v\n", name, hub.OverTLS, blocked)
	}
}

// trust reads the root files, each different set once.
func (c *checker) trust() {
	read := func(path string, h config.Hub) {
		if _, err := c.files.trust(h); err != nil {
			c.problem(path+".trust", err.Error())
		}
	}
	read("hub", c.cfg.Hub)
	seen := map[string]bool{fmt.Sprint(c.cfg.Hub.Trust, c.cfg.Hub.SystemRoots): true}
	for i := range c.cfg.Identities {
		h := c.cfg.Identities[i].Hub
		if set := fmt.Sprint(h.Trust, h.SystemRoots); !seen[set] {
			seen[set] = true
			read(fmt.Sprintf("identities[%d]", i), h)
		}
	}
}

// local builds the listeners without binding them, which reads their files.
func (c *checker) local() {
	if err := silentFile(c.cfg); err != nil {
		c.problems = append(c.problems, err)
		return
	}
	router, err := newRouter(c.cfg)
	if err != nil {
		c.problems = append(c.problems, err)
		return
	}
	if err := tryListeners(c.cfg, router); err != nil {
		for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
			path, reason, _ := strings.Cut(e.Error(), ": ")
			c.problem(path, reason)
		}
	}
}

// describe says what an identity's files hold.
func describe(w io.Writer, c certificate, path string) {
	fmt.Fprintf(w, "%s (%s)\n", c.Identity, path)
	if r := c.Report; r == nil {
		fmt.Fprintln(w, "  no usable certificate")
	} else {
		fmt.Fprintf(w, "  subject   %s\n  issuer    %s\n", r.Subject, r.Issuer)
		fmt.Fprintf(w, "  sha1      %s\n  sha256    %s\n", r.SHA1, r.SHA256)
		fmt.Fprintf(w, "  valid     %s to %s, %.1f days left\n", r.NotBefore.UTC().Format(time.RFC3339), r.NotAfter.UTC().Format(time.RFC3339), r.DaysLeft)
		fmt.Fprintf(w, "  cn        %s\n", nameText(r.CommonName, c.HubID, r.CommonNameMatches))
		whole := "whole"
		if !r.ChainWhole {
			whole = "not whole"
		}
		fmt.Fprintf(w, "  chain     %s, %d certificate(s), up to %s\n", whole, r.Chain, r.ChainTop)
	}
	for _, p := range c.Problems {
		fmt.Fprintf(w, "  problem   %s\n", p)
	}
	for _, p := range c.Warnings {
		fmt.Fprintf(w, "  warning   %s\n", p)
	}
}

func nameText(got, want string, accepted bool) string {
	switch {
	case got == want:
		return fmt.Sprintf("%q equals the identity", got)
	case accepted:
		return fmt.Sprintf("%q is not %q, which allow_cn_mismatch accepts", got, want)
	}
	return fmt.Sprintf("%q is not %q", got, want)
}
