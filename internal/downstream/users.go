package downstream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/crypto/bcrypt"
)

// Bounds of the bcrypt cost: below the first guessing is cheap, above the second
// one login takes seconds of a field gateway's processor.
const (
	minBcryptCost  = 8
	maxBcryptCost  = 14
	newBcryptCost  = 10
	maxUsersFile   = 4 << 20
	maxPasswordLen = 72 // bcrypt ignores the rest, so more is refused
)

// nobodysHash is of a random password that nobody knows. It is compared with when
// the user name is unknown, so that the time taken tells nothing.
const nobodysHash = "$2a$10$mIbFg26g53ifFXZvxnC3cunZQCOuCBoSte57thKoBnlEZQY.tqSoe"

// Users are the lines of a users file: name:bcrypt-hash. Check and Reload may be
// called at the same time.
type Users struct {
	path string
	// verifying bounds the passwords that are computed at a time, so that logins
	// cannot take the processor from the messages.
	verifying chan struct{}
	key       []byte // of the remembered passwords; random per process

	mu    sync.Mutex
	hash  map[string][]byte
	known map[string][sha256.Size]byte // keyed digest of hash and password that matched
}

// LoadUsers reads a users file. Every bad line is reported, without its hash.
func LoadUsers(path string) (*Users, error) {
	u := &Users{path: path, verifying: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)), key: make([]byte, 32)}
	if _, err := rand.Read(u.key); err != nil {
		return nil, err
	}
	return u, u.Reload()
}

// Reload reads the file again; on an error the users stay as they were.
func (u *Users) Reload() error {
	f, err := os.Open(u.path)
	if err != nil {
		return err
	}
	defer f.Close()
	hash, err := parseUsers(io.LimitReader(f, maxUsersFile))
	if err != nil {
		return fmt.Errorf("%s: %w", u.path, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.hash, u.known = hash, make(map[string][sha256.Size]byte)
	return nil
}

func parseUsers(r io.Reader) (map[string][]byte, error) {
	hash := make(map[string][]byte)
	var problems []error
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, text, found := strings.Cut(line, ":")
		cost, err := bcrypt.Cost([]byte(text))
		switch _, twice := hash[name]; {
		case !found || name == "":
			problems = append(problems, fmt.Errorf("line %d: not name:bcrypt-hash", n))
		case twice:
			problems = append(problems, fmt.Errorf("line %d: %q is there twice", n, name))
		case err != nil:
			problems = append(problems, fmt.Errorf("line %d: %q has no bcrypt hash", n, name))
		case cost < minBcryptCost || cost > maxBcryptCost:
			problems = append(problems, fmt.Errorf("line %d: %q has bcrypt cost %d, not %d to %d", n, name, cost, minBcryptCost, maxBcryptCost))
		default:
			hash[name] = []byte(text)
		}
	}
	problems = append(problems, lines.Err())
	return hash, errors.Join(problems...)
}

// UserLine makes a line for a users file.
func UserLine(name, password string) (string, error) {
	switch {
	case name == "" || strings.ContainsAny(name, ":\n\r\x00") || strings.TrimSpace(name) != name || name[0] == '#':
		return "", errors.New("a user name is not empty and has no colon, line break or space around it")
	case password == "" || len(password) > maxPasswordLen:
		return "", fmt.Errorf("a password has 1 to %d bytes", maxPasswordLen)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), newBcryptCost)
	if err != nil {
		return "", err
	}
	return name + ":" + string(hash), nil
}

// Check returns nil when the password is the user's. A first match costs tens of
// milliseconds and waits for its turn until ctx ends, which is errBusy; the same
// again costs microseconds, because a thousand sensors come back at the same moment.
func (u *Users) Check(ctx context.Context, name string, password []byte) error {
	if len(password) > maxPasswordLen {
		return errCredentials
	}
	u.mu.Lock()
	hash, exists := u.hash[name]
	known, remembered := u.known[name]
	u.mu.Unlock()
	digest := u.digest(hash, password)
	if exists && remembered && hmac.Equal(known[:], digest[:]) {
		return nil
	}
	select {
	case u.verifying <- struct{}{}:
	case <-ctx.Done():
		return errBusy
	}
	defer func() { <-u.verifying }()
	if !exists {
		hash = []byte(nobodysHash)
	}
	if bcrypt.CompareHashAndPassword(hash, password) != nil || !exists {
		return errCredentials
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if bytes.Equal(u.hash[name], hash) {
		u.known[name] = digest
	}
	return nil
}

func (u *Users) digest(hash, password []byte) (d [sha256.Size]byte) {
	h := hmac.New(sha256.New, u.key)
	h.Write(hash) // of fixed length
	h.Write(password)
	h.Sum(d[:0])
	return d
}
