package downstream

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

const maxTokensFile = 1 << 20

// Tokens are the lines of a token file: a bearer token, or a name, a space and a
// token. The name is how the client shows up; without one it is its address.
type Tokens struct {
	path string

	mu sync.Mutex
	// Keyed by digest, so that looking a token up takes the same time whatever it
	// shares with a valid one.
	names map[[sha256.Size]byte]string
}

// LoadTokens reads a token file. Every bad line is reported, without its token.
func LoadTokens(path string) (*Tokens, error) {
	t := &Tokens{path: path}
	return t, t.Reload()
}

// Reload reads the file again; on an error the tokens stay as they were.
func (t *Tokens) Reload() error {
	f, err := os.Open(t.path)
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := parseTokens(io.LimitReader(f, maxTokensFile))
	if err != nil {
		return fmt.Errorf("%s: %w", t.path, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.names = names
	return nil
}

func parseTokens(r io.Reader) (map[[sha256.Size]byte]string, error) {
	names := make(map[[sha256.Size]byte]string)
	var problems []error
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		name, token := "", fields[len(fields)-1]
		if len(fields) == 2 {
			name = fields[0]
		}
		if len(fields) > 2 {
			problems = append(problems, fmt.Errorf("line %d: not a token, nor a name and a token", n))
			continue
		}
		names[sha256.Sum256([]byte(token))] = name
	}
	if len(names) == 0 && len(problems) == 0 {
		problems = append(problems, errors.New("no token in the file"))
	}
	problems = append(problems, lines.Err())
	return names, errors.Join(problems...)
}

// Lookup returns the name of a token, "" for one without; false: it is none of them.
func (t *Tokens) Lookup(token string) (name string, ok bool) {
	digest := sha256.Sum256([]byte(token))
	t.mu.Lock()
	defer t.mu.Unlock()
	name, ok = t.names[digest]
	return name, ok
}
