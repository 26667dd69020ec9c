package certstore

import (
	"fmt"
	"strings"
)

// nameProblem refuses a certificate of another identity: the hub would, at the price of the working connection. The hub
// compares case-sensitively.
func nameProblem(c *Credential, want string) error {
	got := c.leaf.Subject.CommonName
	if want == "" || got == want {
		return nil
	}
	hint := "is this the certificate of another identity?"
	switch {
	case got == "":
		hint = "have it issued with the device id as common name"
	case strings.EqualFold(got, want):
		hint = "the hub compares upper and lower case"
	}
	return &Invalid{Reason: fmt.Sprintf("the certificate's common name is %q, not %q", got, want), Hint: hint, Fingerprint: c.fingerprint}
}
