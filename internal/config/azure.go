package config

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// azureClients reads who may speak IoT Hub's own dialect on a listener.
func (o *object) azureClients(m *MQTT) {
	d := o.d
	all := o.object("azure_clients")
	for _, k := range all.keys {
		at := all.child(k.Value)
		c := d.object(all.take(k.Value), at)
		var client AzureClient
		c.file("key_file", &client.KeyFile, d.report)
		client.Thumbprints = c.texts("thumbprints")
		for i, t := range client.Thumbprints {
			plain := strings.ToLower(strings.ReplaceAll(t, ":", ""))
			if raw, err := hex.DecodeString(plain); err != nil || len(raw) != 20 && len(raw) != 32 {
				d.report(item(c.child("thumbprints"), i), "%s is neither a SHA-1 nor a SHA-256 thumbprint in hex", quote(t))
			}
			client.Thumbprints[i] = plain
		}
		c.finish()
		if m.AzureClients == nil {
			m.AzureClients = map[string]AzureClient{}
		}
		m.AzureClients[k.Value] = client
		switch ca := m.TLS.ClientCA != ""; {
		case c.broken || !d.ok(at):
		case client.KeyFile == "" && !ca:
			d.report(c.child("key_file"), "is missing: without tls.client_ca a token is the only way to log in")
		case len(client.Thumbprints) > 0 && !ca:
			d.report(at+".thumbprints", "certificates need tls.client_ca of the listener; a self-signed one may stand in it itself")
		}
	}
	if len(m.AzureClients) > 0 && m.Listen.Enabled() && !m.Listen.TLS && !m.Listen.Local() {
		d.warn(o.child("azure_clients"), "%s is without TLS: tokens go over the network in the open, and no Azure SDK connects", m.Listen)
	}
}

// azureIdentities wants an identity for each Azure SDK client, and one that a client
// id can tell from the others.
func (d *decoder) azureIdentities(c *Config) {
	byName := map[string]*Identity{}
	for i := range c.Identities {
		byName[c.Identities[i].Name] = &c.Identities[i]
	}
	for i := range c.Downstream.MQTT {
		path := item("downstream.mqtt", i) + ".azure_clients"
		taken := map[string]string{}
		for _, name := range slices.Sorted(maps.Keys(c.Downstream.MQTT[i].AzureClients)) {
			id := byName[name]
			if id == nil && d.ok("identities") {
				hint := ""
				if s := suggest(name, c.Names()); s != "" {
					hint = fmt.Sprintf("; did you mean %q?", s)
				}
				d.report(path+"."+keyText(name), "is not the name of an identity%s", hint)
			}
			if id == nil {
				continue
			}
			if other, twice := taken[id.HubID()]; twice {
				d.report(path+"."+keyText(name), "has the same device and module id as %s, of another hub: a client cannot say which it is; give it another listener", quote(other))
			}
			taken[id.HubID()] = name
		}
	}
}

// onlyAzure tells whether nobody but Azure SDK clients, who need no route, is let in.
func (d *Downstream) onlyAzure() bool {
	others := len(d.HTTP) + len(d.Broker) + len(d.Exec) + len(d.Socket)
	for _, m := range d.MQTT {
		if len(m.AzureClients) == 0 || m.UsersFile != "" || m.Anonymous {
			others++
		}
	}
	return others == 0 && len(d.MQTT) > 0
}
