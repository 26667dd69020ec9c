package main

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
)

// notifier tells systemd how the service is. Without a NOTIFY_SOCKET it does
// nothing.
type notifier struct{ log *zap.Logger }

func (n notifier) send(state string) {
	// A supervisor that cannot be reached must not stop the data path.
	if _, err := daemon.SdNotify(false, state); err != nil {
		n.log.Debug("systemd not notified", zap.Error(err))
	}
}

func (n notifier) ready(status string)  { n.send(daemon.SdNotifyReady + "\nSTATUS=" + status) }
func (n notifier) status(status string) { n.send("STATUS=" + status) }
func (n notifier) stopping() {
	n.send(daemon.SdNotifyStopping + "\nSTATUS=stopping: delivering what is in flight")
}

// reloading and then ready frame a reload for Type=notify-reload; MONOTONIC_USEC
// is what systemd 253 and newer asks for and older ones ignore.
func (n notifier) reloading() {
	n.send(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, monotonicMicros()))
}

// supervise feeds the watchdog, as long as stalled finds nothing, and refreshes
// the status line until ctx ends. A component that hangs starves the watchdog
// and so gets the process restarted by systemd.
func (n notifier) supervise(ctx context.Context, stalled func() string, status func() string) {
	period := 10 * time.Second
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		n.log.Warn("watchdog setting not understood", zap.Error(err))
	}
	if watchdog > 0 {
		period = min(period, watchdog/3)
	}
	tick := time.NewTicker(period)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		what := stalled()
		if what != said {
			if what != "" {
				n.log.Error("stalled; the watchdog is not fed", zap.String("err", what))
			}
			said = what
		}
		if what == "" && watchdog > 0 {
			n.send(daemon.SdNotifyWatchdog)
		}
		n.status(status())
	}
}
