package hubtest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// tokenExpiry limits the numbers that fit a date.
const tokenExpiry = 253402300799 // 9999-12-31

// checkToken verifies a shared access signature for an identity and returns when it expires.
func checkToken(token string, key []byte, host string, u username, now time.Time) (time.Time, error) {
	fields, ok := strings.CutPrefix(token, "SharedAccessSignature ")
	if !ok {
		return time.Time{}, errors.New("not a shared access signature")
	}
	var sr, sig, se string
	for pair := range strings.SplitSeq(fields, "&") {
		k, v, _ := strings.Cut(pair, "=")
		switch k {
		case "sr":
			sr = v
		case "sig":
			sig = v
		case "se":
			se = v
		}
	}
	given, err := unescape(nil, sig)
	if err != nil {
		return time.Time{}, fmt.Errorf("sig: %w", err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(sr + "\n" + se))
	if want := base64.StdEncoding.EncodeToString(mac.Sum(nil)); !hmac.Equal([]byte(want), given) {
		return time.Time{}, errors.New("wrong signature")
	}
	if err := checkResource(sr, host, u); err != nil {
		return time.Time{}, err
	}
	seconds, err := strconv.ParseInt(se, 10, 64)
	if err != nil || seconds < 0 || seconds > tokenExpiry {
		return time.Time{}, errors.New("se is not a time")
	}
	expiry := time.Unix(seconds, 0)
	if !now.Before(expiry) {
		return time.Time{}, errors.New("expired")
	}
	return expiry, nil
}

// checkResource wants sr to cover the identity by whole path segments.
func checkResource(sr, host string, u username) error {
	raw, err := unescape(nil, sr)
	if err != nil {
		return fmt.Errorf("sr: %w", err)
	}
	want := host + "/devices/" + u.device
	if u.module != "" {
		want += "/modules/" + u.module
	}
	if got := string(raw); want != got && !strings.HasPrefix(want, got+"/") {
		return fmt.Errorf("sr %q does not cover the identity", got)
	}
	return nil
}
