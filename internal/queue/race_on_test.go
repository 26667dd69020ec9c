//go:build race

package queue

// underRace: the race detector makes the exhaustive tests many times slower and sees nothing new in them, as they run in one goroutine.
const underRace = true
