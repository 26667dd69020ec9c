package hubtest

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Device is a registered identity: a device, or a module when ModuleID is set.
type Device struct {
	DeviceID, ModuleID string

	// Thumbprints makes it self-signed: up to two slots, each the hex SHA-1 or SHA-256 of the leaf, case
	// ignored. Without any, and without a Key, the identity is CA-signed.
	Thumbprints []string
	// Key makes it an identity with a shared access key, which no certificate can open.
	Key []byte
	// ManagedID, if set, has to stand in the certificate's subject as its serialNumber attribute: rotating
	// it revokes what was issued before. The real place of that identifier is unpublished.
	ManagedID string
	Disabled  bool
}

// Errors of the service side, with the hub's own numbers.
var (
	ErrUnknownIdentity = errors.New("404001 device not found")
	ErrNotOnline       = errors.New("404103 device not online")
	ErrMethodTimeout   = errors.New("504101 gateway timeout")
	ErrTooManyMethods  = errors.New("403800 too many direct methods in flight")
	ErrQueueFull       = errors.New("403004 device maximum queue depth exceeded")
	ErrTooLarge        = errors.New("413001 message too large")
	ErrNoC2D           = errors.New("405001 modules do not receive cloud-to-device messages")
)

// identity is the hub's state for one Device. It outlives connections.
type identity struct {
	name string

	mu      sync.Mutex
	device  Device
	conn    *conn // the live connection
	subs    subscriptions
	stored  bool // a session with clean session 0 exists
	c2d     []*c2dMessage
	c2dLog  []*c2dMessage // all that were ever queued
	methods map[string]*methodCall
	twin    twin

	refuse  Refusal
	contest time.Duration
	fail    []int // statuses for the next twin requests
	count   counters
	faults  ackFaults
}

// counters are read while connections write them.
type counters struct {
	messages, bytes, dups, acked, rejected, connects, refused atomic.Uint64
}

// AddDevice registers an identity, or changes a registered one; a live connection that the change forbids is
// closed. It fails for a name that the real registry would refuse and for a malformed thumbprint.
func (h *Hub) AddDevice(d Device) error {
	if err := d.check(); err != nil {
		return err
	}
	d.Thumbprints = slices.Clone(d.Thumbprints)
	name := identityName(d.DeviceID, d.ModuleID)
	h.mu.Lock()
	id := h.devices[name]
	if id == nil {
		id = &identity{name: name, methods: map[string]*methodCall{}, twin: newTwin()}
		h.devices[name] = id
	}
	h.mu.Unlock()
	id.mu.Lock()
	id.device = d
	id.mu.Unlock()
	h.recheck(id)
	return nil
}

// RemoveDevice deletes an identity with its twin and queue, and closes its connection.
func (h *Hub) RemoveDevice(name string) {
	h.mu.Lock()
	id := h.devices[name]
	delete(h.devices, name)
	h.mu.Unlock()
	if id != nil {
		id.close("identity deleted")
	}
}

// SetDisabled disables or enables an identity; disabling closes its connection.
func (h *Hub) SetDisabled(name string, disabled bool) error {
	id, err := h.identity(name)
	if err != nil {
		return err
	}
	id.mu.Lock()
	id.device.Disabled = disabled
	id.mu.Unlock()
	h.recheck(id)
	return nil
}

// Device returns the registration of an identity.
func (h *Hub) Device(name string) (Device, bool) {
	id, err := h.identity(name)
	if err != nil {
		return Device{}, false
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.device, true
}

// Identities are the names of all registered identities, sorted.
func (h *Hub) Identities() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	names := make([]string, 0, len(h.devices))
	for name := range h.devices {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// AddCA registers a CA, root or intermediate, for CA-signed identities.
func (h *Hub) AddCA(ca *x509.Certificate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cas = append(slices.Clone(h.cas), ca)
}

// RemoveCA takes a CA back and closes connections that depend on it.
func (h *Hub) RemoveCA(ca *x509.Certificate) {
	h.mu.Lock()
	h.cas = slices.DeleteFunc(slices.Clone(h.cas), ca.Equal)
	ids := make([]*identity, 0, len(h.devices))
	for _, id := range h.devices {
		ids = append(ids, id)
	}
	h.mu.Unlock()
	for _, id := range ids {
		h.recheck(id)
	}
}

func (h *Hub) identity(name string) (*identity, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	id := h.devices[name]
	if id == nil {
		return nil, fmt.Errorf("identity %q: %w", name, ErrUnknownIdentity)
	}
	return id, nil
}

func (h *Hub) roots() []*x509.Certificate {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cas
}

// recheck closes a live connection that would not be let in again (row 27).
func (h *Hub) recheck(id *identity) {
	id.mu.Lock()
	c, d := id.conn, id.device
	id.mu.Unlock()
	if c == nil {
		return
	}
	if v := h.authorize(c.user, d, c.cert, c.password); v != nil {
		c.close(27, "no longer allowed: "+v.reason)
	}
}

func (id *identity) close(reason string) {
	id.mu.Lock()
	c := id.conn
	id.mu.Unlock()
	if c != nil {
		c.close(27, reason)
	}
}

// live is the connection of an identity, nil if there is none.
func (id *identity) live() *conn {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.conn
}

func (d Device) check() error {
	if err := checkID("device id", d.DeviceID); err != nil {
		return err
	}
	if d.ModuleID != "" {
		if err := checkID("module id", d.ModuleID); err != nil {
			return err
		}
	}
	if len(d.Thumbprints) > 2 {
		return fmt.Errorf("device %q has %d thumbprints, want at most a primary and a secondary", d.DeviceID, len(d.Thumbprints))
	}
	if len(d.Thumbprints) > 0 && len(d.Key) > 0 {
		return fmt.Errorf("device %q has thumbprints and a key, want one kind of authentication", d.DeviceID)
	}
	for _, t := range d.Thumbprints {
		if n := len(t); n != 40 && n != 64 || strings.Trim(t, "0123456789abcdefABCDEF") != "" {
			return fmt.Errorf("device %q: thumbprint %q is neither 40 nor 64 hex digits", d.DeviceID, t)
		}
	}
	return nil
}

// checkID applies the registry's alphabet for device and module ids.
func checkID(what, id string) error {
	if id == "" || len(id) > 128 {
		return fmt.Errorf("%s has %d characters, want 1 to 128", what, len(id))
	}
	for i := range len(id) {
		if !idByte(id[i], "-.+%_#*?!(),:=@$'") {
			return fmt.Errorf("%s %q has the foreign character %q", what, id, id[i])
		}
	}
	return nil
}
