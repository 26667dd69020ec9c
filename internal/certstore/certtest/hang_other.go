//go:build !linux

package certtest

import "errors"

// Hang needs Linux.
func Hang(string) (release func(), err error) { return nil, errors.ErrUnsupported }
