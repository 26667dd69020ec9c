package config

import (
	"errors"
	"fmt"
	"strings"
)

// ConnectionString is what gatewayd uses of an IoT Hub device or module
// connection string. No field ever holds a secret.
type ConnectionString struct {
	HostName, DeviceID, ModuleID, GatewayHostName string

	// KeyIgnored: a SharedAccessKey stood beside x509=true. The hub's own
	// documentation has such an example; the certificate is what counts.
	KeyIgnored bool
}

// ParseConnectionString splits on ";" and each part on its first "=" (keys in
// base64 end in "="); nothing is quoted or escaped. Key names are matched
// exactly, as three of the four SDKs do. All faults are reported, joined, and
// no message holds a value, nor a key name that might be part of a secret.
func ParseConnectionString(s string) (ConnectionString, error) {
	var (
		cs     ConnectionString
		x509   string
		secret string
		faults []error
	)
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	fields := map[string]*string{
		"HostName": &cs.HostName, "DeviceId": &cs.DeviceID, "ModuleId": &cs.ModuleID,
		"GatewayHostName": &cs.GatewayHostName, "x509": &x509, "SharedAccessKey": &secret,
	}
	seen := map[string]bool{}
	for i, part := range strings.Split(s, ";") {
		key, value, found := strings.Cut(part, "=")
		into := fields[key]
		switch {
		case part == "":
			fault("part %d is empty (a \";\" too many)", i+1)
		case !found && into != nil:
			fault("%s has no \"=\"", key)
		case !found:
			fault("part %d has no \"=\"", i+1)
		case into == nil:
			faults = append(faults, unknownPart(i+1, key, value))
		case seen[key]:
			fault("%s is there twice", key)
		case value == "":
			fault("%s is empty", key)
		default:
			*into = value
		}
		seen[key] = true
	}
	if !seen["HostName"] {
		fault("HostName is missing")
	}
	if !seen["DeviceId"] {
		fault("DeviceId is missing")
	}
	switch {
	case !seen["x509"]:
		fault("x509=true is missing: gatewayd authenticates with certificates only")
	case x509 != "" && x509 != "true":
		fault("x509 can only be true")
	}
	if err := errors.Join(faults...); err != nil {
		return ConnectionString{}, err
	}
	cs.KeyIgnored = secret != ""
	return cs, nil
}

// unknownPart names a key unless it may be a piece of a base64 secret, which can
// stand where a key should in a torn string: such a piece is long, or nothing but
// padding follows it.
func unknownPart(position int, key, value string) error {
	all := []string{"HostName", "DeviceId", "ModuleId", "x509", "GatewayHostName", "SharedAccessKey",
		"SharedAccessKeyName", "SharedAccessSignature", "UseProvisioning", "X509Cert"}
	near := suggest(key, all)
	switch {
	case near == key:
	case len(key) > 20 || keyText(key) != key || strings.Trim(value, "=") == "":
		key = ""
	}
	switch {
	case near == "" && key == "":
		return fmt.Errorf("part %d has an unknown key", position)
	case near == "":
		return fmt.Errorf("%s is an unknown key", key)
	case near != key && key == "":
		return fmt.Errorf("part %d has an unknown key; did you mean %s?", position, near)
	case near != key:
		return fmt.Errorf("%s is an unknown key; did you mean %s?", key, near)
	case key == "X509Cert":
		return errors.New("X509Cert is the old spelling; write x509=true")
	}
	return fmt.Errorf("%s cannot be used: gatewayd authenticates with certificates only", key)
}

// maxID is what the hub admits for device and module ids.
const maxID = 128

// checkID tells what is wrong with a device or module id, or "".
func checkID(s string) string {
	switch {
	case len(s) > maxID:
		return fmt.Sprintf("has %d characters; the hub admits %d", len(s), maxID)
	case strings.ContainsAny(s, "#+"):
		return fmt.Sprintf("%s holds # or +, which the hub admits but MQTT topics cannot carry", quote(s))
	}
	if i := strings.IndexFunc(s, func(r rune) bool {
		return !alphanumeric(r) && !strings.ContainsRune("-.%_*?!(),:=@$'", r)
	}); i >= 0 {
		return fmt.Sprintf("%s has a character that the hub does not admit, at position %d", quote(s), i+1)
	}
	return ""
}

// checkHost tells what is wrong with a hub's host name, or "".
func checkHost(s string) string {
	if validHost(s) {
		return ""
	}
	return fmt.Sprintf("%s is not a host name such as contoso.azure-devices.net (no scheme, no port)", quote(s))
}
