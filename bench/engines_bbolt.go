//go:build only_bbolt

package main

var engines = map[string]func(string, int) engine{"bbolt": openBolt}
