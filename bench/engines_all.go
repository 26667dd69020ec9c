//go:build !only_journal && !only_pebble && !only_bbolt

package main

// engines are built one by one in the programs that measure; this one only prints.
var engines = map[string]func(string, int) engine{
	"journal": func(d string, n int) engine { return openJournal(d, n) },
	"pebble":  openPebble,
	"bbolt":   openBolt,
}
