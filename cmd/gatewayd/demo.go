package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/config"
	"gatewayd/internal/hub/hubtest"
)

// demoFlags are what `gatewayd demo` can be told.
type demoFlags struct {
	length time.Duration
	renew  time.Duration
	rate   float64
	keep   bool
}

func newDemoCommand() *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole way in one process: sensors, gateway, certificates, stand-in hub",
		Long: `Show the whole way in one process, with no files and no cloud account: a stand-in for IoT Hub with
throw-away certificates, this gateway with two devices and one module, and simulated sensors that publish
over MQTT. Certificates are renewed on disk while messages flow. Ctrl-C ends it. The exit code is 0 only
if every message that a sensor sent has arrived at the hub.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.rate <= 0 || f.length < 0 || f.renew < 0 {
				return &exitError{exitUsage, errors.New("--rate must be above 0; --for and --renew not below")}
			}
			return runDemo(cmd.Context(), f, cmd.OutOrStdout())
		},
	}
	cmd.Flags().DurationVar(&f.length, "for", 0, "end by itself after this time; 0 = until Ctrl-C")
	cmd.Flags().DurationVar(&f.renew, "renew", 10*time.Second, "renew a certificate this often; 0 = never")
	cmd.Flags().Float64Var(&f.rate, "rate", 10, "messages per second and sensor")
	cmd.Flags().BoolVar(&f.keep, "keep", false, "keep the folder with configuration, certificates and log")
	return cmd
}

// demoIdentity is one of the demo's devices or modules.
type demoIdentity struct {
	name, device, module string
	sensors              []string
}

var demoIdentities = [...]demoIdentity{
	{name: "press-7", device: "press-7", sensors: []string{"force", "oil-temp", "stroke"}},
	{name: "oven-2", device: "oven-2", sensors: []string{"zone-1", "zone-2"}},
	{name: "line-1.vision", device: "line-1", module: "vision", sensors: []string{"camera"}},
}

func (d demoIdentity) hubID() string {
	if d.module == "" {
		return d.device
	}
	return d.device + "/" + d.module
}

// demo is the little world around the gateway.
type demo struct {
	dir     string
	ca      *certtest.CA
	hub     *hubtest.Hub
	gateway *gateway
	tally   *demoTally
}

func runDemo(ctx context.Context, f demoFlags, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "gatewayd-demo-")
	if err != nil {
		return err
	}
	logFile, err := os.OpenFile(filepath.Join(dir, "gatewayd.log"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		logFile.Close()
		if f.keep || err != nil {
			fmt.Fprintf(out, "kept for inspection: %s\n", dir)
			return
		}
		os.RemoveAll(dir)
	}()
	level := zap.NewAtomicLevelAt(zap.InfoLevel)
	d, err := newDemo(dir, newLogger(logFile, level, "console"), level)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "gatewayd %s demo: %d identities, a stand-in hub, everything in %s\n", readBuild().Version, len(demoIdentities), dir)
	fmt.Fprintf(out, "publish too:  mosquitto_pub -p %s -q 1 -t sensors/press-7/mine/telemetry -m '{\"hello\":1}'\n", port(d.gateway.now.Load().mqtt[0].Addr()))
	fmt.Fprintf(out, "look inside:  http://%s/\n\n", d.gateway.admin.addr())
	return d.run(ctx, f, out)
}

// newDemo writes everything that a real site has: certificates, a configuration
// file, a hub that knows the identities.
func newDemo(dir string, log *zap.Logger, level zap.AtomicLevel) (*demo, error) {
	d := &demo{dir: dir, tally: newDemoTally()}
	var err error
	if d.ca, err = certtest.NewCA("demo site CA"); err != nil {
		return nil, err
	}
	if d.hub, err = hubtest.New(hubtest.Options{Ledger: hubtest.CountOnly}); err != nil {
		return nil, err
	}
	d.hub.AddCA(d.ca.Cert)
	d.hub.OnMessage(d.tally.arrived)
	for _, id := range demoIdentities {
		if err := d.hub.AddDevice(hubtest.Device{DeviceID: id.device, ModuleID: id.module}); err != nil {
			return nil, err
		}
		if err := d.renew(id); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "hub-ca.pem"), d.hub.ServerCAPEM(), 0o600); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, d.config(), 0o600); err != nil {
		return nil, err
	}
	cfg, err := config.Load(file)
	if err != nil {
		return nil, err
	}
	d.gateway, err = newGateway(cfg, log, level)
	return d, err
}

// renew issues a new certificate for an identity and puts it in place by rename,
// as a careful renewal tool does.
func (d *demo) renew(id demoIdentity) error {
	pair, err := d.ca.Issue(certtest.Leaf{CN: id.hubID(), NotAfter: time.Now().Add(30 * 24 * time.Hour)})
	if err != nil {
		return err
	}
	return pair.Write(filepath.Join(d.dir, id.name+".pem"), filepath.Join(d.dir, id.name+".key"))
}

func (d *demo) config() []byte {
	b := fmt.Appendf(nil, "state_dir: state\nhub:\n  trust: [hub-ca.pem]\n  system_roots: false\n  keepalive: 30s\nidentities:\n")
	for _, id := range demoIdentities {
		cs := fmt.Sprintf("HostName=%s;DeviceId=%s", d.hub.HostName(), id.device)
		if id.module != "" {
			cs += ";ModuleId=" + id.module
		}
		b = fmt.Appendf(b, "  - name: %s\n    connection_string: %s;x509=true\n    address: %s\n    certificate: {cert: %s.pem, key: %s.key}\n",
			id.name, cs, d.hub.Addr(), id.name, id.name)
	}
	return fmt.Appendf(b, `downstream:
  mqtt: [{listen: "127.0.0.1:0"}]
  http: [{listen: "127.0.0.1:0"}]
routes:
  - match: sensors/+/+/telemetry
    to: "{1}"
    properties: {sensor: "{2}"}
    content_type: application/json
    content_encoding: utf-8
admin: {listen: "127.0.0.1:0"}
`)
}

// run lets everything flow until ctx or the time ends, and then counts.
func (d *demo) run(ctx context.Context, f demoFlags, out io.Writer) error {
	world, fail := context.WithCancelCause(context.Background())
	defer fail(nil)
	around, gateway := newLifetime(fail), newLifetime(fail)
	around.start("stand-in hub", d.hub.Run)
	gateway.start("gateway", d.gateway.Run)

	sensing := newLifetime(fail)
	for _, id := range demoIdentities {
		for _, name := range id.sensors {
			s := &demoSensor{identity: id.name, name: name, address: d.gateway.now.Load().mqtt[0].Addr().String(), rate: f.rate, tally: d.tally}
			sensing.start("sensor "+name, s.run)
		}
	}
	renewing := newLifetime(fail)
	if f.renew > 0 {
		renewing.start("renewal", func(ctx context.Context) error { return d.renewals(ctx, f.renew) })
	}
	view := newDemoView(out, d)
	renewing.start("view", view.run)

	end := make(<-chan time.Time)
	if f.length > 0 {
		end = time.After(f.length)
	}
	select {
	case <-ctx.Done():
	case <-end:
	case <-world.Done():
	}
	sensing.stop()
	d.settle(10 * time.Second)
	renewing.stop()
	gateway.stop()
	around.stop()
	if err := context.Cause(world); err != nil {
		return err
	}
	return d.tally.summary(out, d.gateway)
}

// renewals gives the identities new certificates in turn.
func (d *demo) renewals(ctx context.Context, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := d.renew(demoIdentities[n%len(demoIdentities)]); err != nil {
				return err
			}
		}
	}
}

// settle waits until the hub has what the sensors sent.
func (d *demo) settle(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	// What is missing afterwards is told by the summary.
	_ = d.hub.Wait(ctx, d.tally.complete)
}
