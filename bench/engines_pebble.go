//go:build only_pebble

package main

var engines = map[string]func(string, int) engine{"pebble": openPebble}
