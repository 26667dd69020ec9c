// Package certtest is a tiny certificate authority for tests and for the demonstration: it mints roots,
// intermediates, client and server certificates in memory, valid or wrong on purpose.
//
// It promises certificates that a strict X.509 verifier accepts unless the caller asked for a fault, and key
// files that only their owner can read. It keeps no global state, starts no goroutines and touches the disk
// only in [Pair.Write]. Keys are ECDSA P-256 unless asked otherwise, because they cost microseconds.
//
// All times come from the clock of the process, so inside a testing/synctest bubble the certificates live in
// virtual time.
package certtest
