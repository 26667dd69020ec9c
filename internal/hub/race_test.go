//go:build race

package hub

// raceEnabled: real times are several times longer, so limits on them say nothing.
const raceEnabled = true
