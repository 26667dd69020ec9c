//go:build only_journal

package main

var engines = map[string]func(string, int) engine{"journal": func(d string, n int) engine { return openJournal(d, n) }}
