package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"gatewayd/internal/certstore"
	"gatewayd/internal/config"
)

// certificates reads the files of all identities, which also shows who shares one,
// and the roots.
func (d *doctor) certificates(chosen []*patient) {
	now, _ := d.clock.Now()
	r := newPatientReader()
	all := r.certificates(d.cfg, now)
	d.trust = make(map[string]error)
	for _, p := range chosen {
		for i := range all {
			if all[i].Identity == p.Name {
				p.cert, p.cred = &all[i], all[i].cred
			}
		}
		_, d.trust[trustKey(p.cfg.Hub)] = r.trust(p.cfg.Hub)
	}
}

func trustKey(h config.Hub) string { return fmt.Sprint(h.Trust, h.SystemRoots) }

// configuration asks whether the running gateway goes by this file.
func (d *doctor) configuration(_ context.Context, p *patient) bool {
	if d.report != nil {
		for i := range d.report.Identities {
			if r := &d.report.Identities[i]; r.Name == p.Name {
				p.status = r
			}
		}
		switch {
		case p.status == nil && d.report.ConfigFile != d.cfg.File:
			return p.fault(stepConfiguration, fmt.Sprintf("the gateway that runs on this state_dir goes by %s and does not know this identity", d.report.ConfigFile),
				"Stop that gateway, or give this one a state_dir of its own.")
		case p.status == nil:
			return p.fault(stepConfiguration, "the running gateway does not know this identity: the file has changed since it was read",
				"Run gatewayd reload -c "+d.file+".")
		case p.status.HubID != p.HubID || p.status.Host != p.Host:
			return p.fault(stepConfiguration, fmt.Sprintf("the running gateway has it as %s at %s: the file has changed since it was read", p.status.HubID, p.status.Host),
				"Run gatewayd reload -c "+d.file+".")
		}
	}
	for _, w := range d.cfg.Warnings {
		if w.Path == "routes" || w.Path == "downstream" {
			p.note("%s %s", w.Path, w.Reason)
		}
	}
	p.ok(stepConfiguration, "%s", d.cfg.File)
	return true
}

// files asks whether certificate and key can be read, by whom, and belong together.
func (d *doctor) files(_ context.Context, p *patient) bool {
	src := certstore.Source(p.cfg.Certificate)
	if err := d.trust[trustKey(p.cfg.Hub)]; err != nil {
		next := "Put the root certificates of the hub into the file that hub.trust names, as PEM."
		var bad *certstore.Invalid
		if errors.As(err, &bad) && bad.Hint != "" {
			next = sentence(bad.Hint) + " " + next
		}
		return p.fault(stepFile, "hub.trust: "+reasonOf(err), next)
	}
	if err := p.cert.err; err != nil {
		step, text, next := loadFault(err)
		if d.stranger != "" && !isSilent(err) && errors.Is(readable(src), fs.ErrPermission) {
			next = fmt.Sprintf("Run this command as root or as %s, who runs the gateway: you may not read it.", d.stranger)
		}
		return p.fault(step, text, next)
	}
	if d.user != nil {
		if path, err := d.user.cannotRead(src.Cert, src.Key, src.PKCS12, src.PassphraseFile); err != nil {
			return p.fault(stepFile, fmt.Sprintf("%s cannot be read by %s, who runs the gateway: %v", path, d.user.name, err),
				fmt.Sprintf("Give it the file: chgrp %s FILE and chmod 640 FILE, and chmod o+x or the group's x for the folders above.", d.user.group))
		}
	}
	r := p.cert.Report
	if !r.CommonNameMatches {
		return p.fault(stepFile, fmt.Sprintf("the certificate is for %q and the identity is %q", r.CommonName, p.HubID),
			"Put the certificate of this identity there, or have one issued with its id as common name. Upper and lower case count.")
	}
	others, loose := sortProblems(p.cert.Problems)
	if others != "" {
		return p.fault(stepFile, others, "Have a certificate of its own issued for each identity.")
	}
	p.ok(stepFile, "%s", strings.Join(nonEmpty(src.Cert, src.Key, src.PKCS12), ", "))
	if loose != "" {
		return p.fault(stepKey, loose, "Change its mode: other users of this machine can take the identity.")
	}
	p.ok(stepKey, "%s, fits the certificate", r.Key)
	d.chainOf(p)
	return true
}

// readable tries to open the files of a certificate as the present user.
func readable(src certstore.Source) error {
	for _, path := range nonEmpty(src.Cert, src.Key, src.PKCS12, src.PassphraseFile) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		_ = f.Close() // it was only read
	}
	return nil
}

// chainOf remembers what is odd about a chain. The hub decides whether it matters:
// it may know the issuer itself.
func (d *doctor) chainOf(p *patient) {
	r := p.cert.Report
	var odd []string
	for _, w := range p.cert.Warnings {
		if strings.Contains(w, "intermediate") || strings.Contains(w, "chain") || strings.Contains(w, "did not sign") {
			odd = append(odd, w)
		} else {
			p.note("%s", w)
		}
	}
	p.chain = strings.Join(odd, "; ")
	if p.chain == "" {
		p.ok(stepChain, "%d certificate(s), up to %s", r.Chain, r.ChainTop)
	}
}

// dates asks whether the certificate is valid now, by the best time that is known.
func (d *doctor) dates(_ context.Context, p *patient) bool {
	r := p.cert.Report
	now, _ := d.clock.Now()
	_, behind := d.clock.Behind()
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case now.After(r.NotAfter):
		return p.fault(stepDates, fmt.Sprintf("the certificate expired on %s", stamp(r.NotAfter)),
			fmt.Sprintf("Renew it and put the new files in its place: they are noticed. This machine's time is %s; is that right?", stamp(time.Now())))
	case now.Before(r.NotBefore) && !behind:
		return p.fault(stepDates, fmt.Sprintf("the certificate is not valid before %s", stamp(r.NotBefore)),
			fmt.Sprintf("This machine's time is %s: set the clock if that is wrong, else wait or have it issued again.", stamp(time.Now())))
	}
	p.ok(stepDates, "until %s, %.1f days left", stamp(r.NotAfter), r.DaysLeft)
	return true
}

// clocks asks whether the machine's time can be right.
func (d *doctor) clocks(_ context.Context, p *patient) bool {
	if floor, behind := d.clock.Behind(); behind {
		return p.fault(stepClock, fmt.Sprintf("this machine's time is %s, and it was %s already", time.Now().UTC().Format(time.RFC3339), floor.UTC().Format(time.RFC3339)),
			"Set the clock, and see to a time server (timedatectl, chronyc tracking): certificates are judged by it.")
	}
	word := "plausible"
	if d.report != nil {
		word = d.report.Clock
		if word == "untrusted" {
			p.note("the running gateway does not believe the clock yet: no time server has answered and no hub has confirmed it")
		}
	}
	p.ok(stepClock, "%s, %s", time.Now().UTC().Format(time.RFC3339), word)
	return true
}

// takenAddresses binds every TCP address of the file for a moment.
func takenAddresses(ctx context.Context, cfg *config.Config) []string {
	var problems []string
	try := func(path string, a config.Address) {
		if !a.Enabled() || a.Network != "tcp" {
			return
		}
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, a.Network, a.Address)
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", path, err))
			return
		}
		_ = l.Close() // it never served anybody
	}
	for i, m := range cfg.Downstream.MQTT {
		try(fmt.Sprintf("downstream.mqtt[%d]", i), m.Listen)
	}
	for i, h := range cfg.Downstream.HTTP {
		try(fmt.Sprintf("downstream.http[%d]", i), h.Listen)
	}
	try("admin.listen", cfg.Admin.Listen)
	return problems
}

// loadFault sorts why files cannot be used under file or key.
func loadFault(err error) (step, text, next string) {
	var half *certstore.Incomplete
	var bad *certstore.Invalid
	switch {
	case isSilent(err):
		return stepFile, err.Error(), "Is the server of the share up, and the way to it? The gateway reads the file as soon as it answers."
	case errors.As(err, &half):
		switch half.Kind {
		case certstore.Mismatch:
			return stepKey, half.Reason, "Put the key there that the certificate was issued for, or have a certificate issued for this key."
		case certstore.Missing:
			return stepFile, half.Reason, "Put the file there, or correct the name under certificate: relative names are relative to the configuration file."
		}
		return stepFile, half.Reason, "Copy the file again; whoever writes it should write a new file beside it and rename it."
	case errors.As(err, &bad):
		if bad.Key {
			return stepKey, bad.Reason, sentence(bad.Hint)
		}
		return stepFile, bad.Reason, sentence(bad.Hint)
	}
	return stepFile, err.Error(), ""
}

// sortProblems takes apart what was found besides what the doctor
// looks at itself.
func sortProblems(problems []string) (file, key string) {
	for _, s := range problems {
		switch {
		case strings.Contains(s, "holds the same certificate"):
			file = s
		case strings.Contains(s, "private key file"):
			key = s
		}
	}
	return file, key
}

func reasonOf(err error) string {
	var bad *certstore.Invalid
	if errors.As(err, &bad) {
		return bad.Reason
	}
	return err.Error()
}

// sentence makes a hint one.
func sentence(hint string) string {
	if hint == "" {
		return ""
	}
	hint = strings.ToUpper(hint[:1]) + hint[1:]
	if strings.HasSuffix(hint, ".") || strings.HasSuffix(hint, "?") {
		return hint
	}
	return hint + "."
}

func nonEmpty(all ...string) []string {
	var some []string
	for _, s := range all {
		if s != "" {
			some = append(some, s)
		}
	}
	return some
}
