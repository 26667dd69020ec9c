package hubtest

import (
	"testing"
	"testing/synctest"
)

// rowTest drives the hub into one rule. It runs in a bubble, so minutes cost nothing.
type rowTest struct {
	row  int
	name string
	opt  Options
	run  func(r *rig)
}

// TestEveryRuleHasItsReaction is the table of rules in the package documentation, driven over the wire.
func TestEveryRuleHasItsReaction(t *testing.T) {
	var all []rowTest
	all = append(all, tlsRows()...)
	all = append(all, connectRows()...)
	all = append(all, sessionRows()...)
	all = append(all, publishRows()...)
	all = append(all, downRows()...)
	all = append(all, twinRows()...)
	covered := map[int]bool{}
	for _, tt := range all {
		covered[tt.row] = true
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, tt.opt)
				defer r.close()
				tt.run(r)
			})
		})
	}
	for row := 1; row <= 58; row++ {
		if !covered[row] {
			t.Errorf("no test for rule %d", row)
		}
	}
}
