package hub

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"gatewayd/internal/bag"
)

// apiVersion is the protocol contract named in the user name of every CONNECT.
const apiVersion = "2021-04-12"

const (
	defaultPort   = "8883"
	webSocketPort = "443"
)

// Identity is one device or module of an IoT Hub.
type Identity struct {
	Name     string // how configuration, status and log call it
	HostName string // the hub; always the first part of the user name
	DeviceID string
	ModuleID string // "" for a device

	// Address is dialled instead of the host name: host:port, or a host alone for the
	// transport's port. The TLS name and the user name do not follow it. With [Auto] it
	// is where MQTT over TLS is; the other port is WebSocketAddress, or 443 of its host.
	Address          string
	WebSocketAddress string
	// GatewayHostName is an IoT Edge device in between: it is dialled and gives
	// the TLS name, while the user name keeps HostName.
	GatewayHostName string
}

// ClientID is the MQTT client identifier: the id as registered, never encoded.
func (id Identity) ClientID() string {
	if id.ModuleID == "" {
		return id.DeviceID
	}
	return id.DeviceID + "/" + id.ModuleID
}

// UserName is the MQTT user name. Only the values of its query are
// percent-encoded: the hub does not decode ids.
func (id Identity) UserName(product string) string {
	name := id.HostName + "/" + id.ClientID() + "/?api-version=" + apiVersion
	if product != "" {
		name += "&DeviceClientType=" + bag.Escape(product)
	}
	return name
}

// eventsTopic is the telemetry topic up to and including the slash before the
// property bag.
func (id Identity) eventsTopic() string {
	if id.ModuleID == "" {
		return "devices/" + id.DeviceID + "/messages/events/"
	}
	return "devices/" + id.DeviceID + "/modules/" + id.ModuleID + "/messages/events/"
}

func (id Identity) serverName() string {
	if id.GatewayHostName != "" {
		return id.GatewayHostName
	}
	return id.HostName
}

// addressOver is where to dial for a transport other than Auto.
func (c *Config) addressOver(t Transport) string {
	addr, port := c.Address, defaultPort
	if t == OverWebSocket {
		port = webSocketPort
		if c.WebSocketAddress != "" {
			addr = c.WebSocketAddress
		} else if host, _, err := net.SplitHostPort(addr); err == nil && c.Transport == Auto {
			addr = host
		}
	}
	if addr == "" {
		addr = c.serverName()
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), port)
	}
	return addr
}

// Validate says why no session can be had for the identity.
func (id Identity) Validate() error {
	if id.HostName == "" || id.DeviceID == "" {
		return errors.New("host name and device id are required")
	}
	for _, part := range []string{id.DeviceID, id.ModuleID} {
		// A topic name with a wildcard is against MQTT 3.1.1 (4.7.1), and a slash
		// would make an id name another identity.
		if i := strings.IndexAny(part, "+#/"); i >= 0 {
			return fmt.Errorf("id %q contains %q, which an MQTT topic cannot carry", part, part[i])
		}
	}
	return nil
}
