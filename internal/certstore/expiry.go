package certstore

import (
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap/zapcore"
)

// expiryStage counts the warnings that a certificate's age has passed; more is worse.
type expiryStage int

type expiryStep struct {
	name  string
	left  time.Duration
	level zapcore.Level
}

// expirySteps are the warnings for a certificate that lives for life, the mildest first. Parts of a life suit
// certificates of a day as well as those of a year; fixed times are what a person plans with, and are left out where the
// whole life is too short for them to say anything.
func expirySteps(life time.Duration) []expiryStep {
	steps := append(make([]expiryStep, 0, 7),
		expiryStep{"1/3", life / 3, zapcore.WarnLevel},
		expiryStep{"1/10", life / 10, zapcore.WarnLevel},
		expiryStep{"1/20", life / 20, zapcore.ErrorLevel})
	for _, fixed := range [...]expiryStep{{"7d", 7 * 24 * time.Hour, zapcore.WarnLevel}, {"1d", 24 * time.Hour, zapcore.ErrorLevel}, {"1h", time.Hour, zapcore.ErrorLevel}} {
		if fixed.left >= life/3 {
			continue
		}
		at := len(steps)
		for at > 0 && steps[at-1].left < fixed.left {
			at--
		}
		steps = slices.Insert(steps, at, fixed)
	}
	return append(steps, expiryStep{"expired", 0, zapcore.ErrorLevel})
}

// expiryText is for a certificate that nobody has renewed in time.
func expiryText(notAfter, now time.Time) string {
	left := notAfter.Sub(now)
	if left <= 0 {
		return "the certificate in use expired on " + stamp(notAfter) + "; renew it"
	}
	return fmt.Sprintf("the certificate in use expires on %s (%.1f days left); renew it", stamp(notAfter), left.Hours()/24)
}

// expiryOf returns the stage that c is in and its step; stage 0 has none. Its level never falls again.
func expiryOf(c *Credential, now time.Time) (expiryStage, expiryStep) {
	left := c.about.notAfter.Sub(now)
	var stage expiryStage
	var at expiryStep
	for i, step := range expirySteps(c.about.notAfter.Sub(c.about.notBefore)) {
		if left <= step.left {
			step.level = max(step.level, at.level) // 7d may come after 1/20
			stage, at = expiryStage(i+1), step
		}
	}
	return stage, at
}
