package hubtest

import (
	"errors"
	"fmt"
	"strings"
)

// username is what CONNECT says about the identity; nothing in it is proven.
type username struct {
	host, device, module string
	apiVersion           string
	clientType, modelID  string
}

// name is the identity in the form of a ClientId.
func (u username) name() string { return identityName(u.device, u.module) }

func identityName(device, module string) string {
	if module == "" {
		return device
	}
	return device + "/" + module
}

// parseUsername reads {host}/{device}[/{module}]/?{query} and the older form without the question mark, which
// released clients still send and Microsoft's own parser (MqttUsernameParser of IoT Edge) accepts. Ids are
// taken literally: the hub does not decode them.
func parseUsername(s string) (username, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 3 || len(parts) > 4 {
		return username{}, fmt.Errorf("user name has %d segments, want host/device[/module]/?query", len(parts))
	}
	for _, p := range parts[:len(parts)-1] {
		if p == "" {
			return username{}, errors.New("user name has an empty segment")
		}
	}
	u := username{host: parts[0], device: parts[1]}
	if len(parts) == 4 {
		u.module = parts[2]
	}
	return u, u.parseQuery(parts[len(parts)-1])
}

func (u *username) parseQuery(last string) error {
	query, marked := strings.CutPrefix(last, "?")
	if !marked && strings.Contains(last, "?") {
		return errors.New("user name has a ? inside its last segment")
	}
	for pair := range strings.SplitSeq(query, "&") {
		key, raw, _ := strings.Cut(pair, "=")
		value, err := unescape(nil, raw)
		if err != nil {
			return fmt.Errorf("user name parameter %q: %w", key, err)
		}
		switch key {
		case "api-version":
			set(&u.apiVersion, string(value))
		case "DeviceClientType":
			set(&u.clientType, string(value))
		case "model-id":
			set(&u.modelID, string(value))
		}
	}
	if u.apiVersion == "" {
		return errors.New("user name has no api-version")
	}
	return nil
}

// knownAPIVersion tells whether a released or preview SDK sends it.
func knownAPIVersion(v string) bool {
	switch v {
	case "2016-02-03", "2016-11-14", "2017-06-30", "2017-11-08-preview", "2018-06-30", "2019-03-30", "2019-03-31",
		"2019-10-01", "2020-03-13", "2020-05-31-preview", "2020-09-30", "2021-04-12", "2025-08-01-preview":
		return true
	}
	return false
}
