// Package config reads gatewayd's one YAML file.
//
// It promises that a loaded Config is complete and sound: every key that the
// file leaves out has its default, every relative path is absolute, every name
// that refers to something refers to something that exists. Anything else is
// an *Error that lists all problems at once, each with line, key path and
// reason, in the order of the file. Nothing is guessed: unknown keys, duplicate
// keys and values of a wrong type are problems.
//
// Certificate files are the one exception to "a missing file is an error": a
// gateway may start before its first certificate is written, so those are
// Warnings here and problems in "gatewayd check", which reads them.
//
// No secret is kept. A connection string's SharedAccessKey is dropped while
// parsing, key material and passwords stay in their files, and the password of
// a proxy is left out of every textual form of Proxy. Reasons never quote a
// value that may be one.
//
// Load starts no goroutine, writes nothing, and may be called concurrently. The
// result is not changed afterwards and may be shared.
//
// The file itself is bounded: 1 MiB, one document, 100,000 values after aliases
// are followed.
package config
