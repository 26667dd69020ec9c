package downstream

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	maxToken = 4 << 10
	// latestExpiry is the end of 9999, the last year that dates are made of.
	latestExpiry = 253402300799
)

// Why a token is refused. None of them says anything of the token.
var (
	errTokenForm      = errors.New("the password is no shared access signature")
	errTokenSignature = errors.New("the token is not signed with the identity's key")
	errTokenResource  = errors.New("the token is for something else")
	errTokenExpired   = errors.New("the token has expired")
)

// checkToken verifies a shared access signature
//
//	SharedAccessSignature sr={resource}&sig={signature}&se={Unix seconds}
//
// by https://learn.microsoft.com/azure/iot-hub/iot-hub-dev-guide-sas: the signature
// is the HMAC-SHA256 over sr, as it stands, a line feed and se.
func (e *azureEntry) checkToken(token string, n azureName, now time.Time) (expires time.Time, err error) {
	if len(e.keys) == 0 {
		return expires, errAzureNoKey
	}
	fields, ok := strings.CutPrefix(token, "SharedAccessSignature ")
	if !ok || len(token) > maxToken {
		return expires, errTokenForm
	}
	var sr, sig, se string
	for pair := range strings.SplitSeq(fields, "&") {
		switch key, value, _ := strings.Cut(pair, "="); key {
		case "sr":
			sr = value
		case "sig":
			sig = value
		case "se":
			se = value
		}
	}
	given, err := url.PathUnescape(sig)
	if err != nil || sr == "" || se == "" {
		return expires, errTokenForm
	}
	seconds, err := strconv.ParseInt(se, 10, 64)
	if err != nil || seconds < 0 || seconds > latestExpiry {
		return expires, errTokenForm
	}
	if !e.signed(sr+"\n"+se, given) {
		return expires, errTokenSignature
	}
	if !e.covered(sr, n) {
		return expires, errTokenResource
	}
	expires = time.Unix(seconds, 0)
	if !now.Before(expires) {
		return expires, errTokenExpired
	}
	return expires, nil
}

func (e *azureEntry) signed(text, signature string) bool {
	ok := false
	for _, key := range e.keys {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(text))
		want := base64.StdEncoding.EncodeToString(mac.Sum(nil))
		ok = hmac.Equal([]byte(want), []byte(signature)) || ok
	}
	return ok
}

// covered tells whether a token's resource is the identity, or a module's device.
// Its host is the one of the user name or the hub's: SDKs differ in which name they
// put where once a gateway is between (.NET signs for the hub and logs in at the
// gateway). Ids are escaped once or twice.
func (e *azureEntry) covered(sr string, n azureName) bool {
	resource, err := url.PathUnescape(sr)
	if err != nil {
		return false
	}
	host, path, _ := strings.Cut(resource, "/")
	if !strings.EqualFold(host, n.host) && !strings.EqualFold(host, e.Host) {
		return false
	}
	device := "devices/" + e.DeviceID
	for range 2 {
		if path == device || e.ModuleID != "" && path == device+"/modules/"+e.ModuleID {
			return true
		}
		if path, err = url.PathUnescape(path); err != nil {
			return false
		}
	}
	return false
}
