package main

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/hub/hubtest/nodesdk"
)

// azurePlant is a plant whose gateway lets Azure SDK clients in. The gateway's own
// twin report is off, so that the twin is the device's alone.
type azurePlant struct {
	*plant
	listen string
	keys   map[string]string // base64, by identity
}

const gatewayName = "gateway.site.example"

func newAzurePlant(t *testing.T, names ...string) *azurePlant {
	t.Helper()
	s := &azurePlant{plant: newPlant(t, hubtest.Options{}, names...), listen: freeAddress(t), keys: map[string]string{}}
	pair := must(s.ca.Issue(certtest.Leaf{CN: gatewayName, DNS: []string{gatewayName}}))(t)
	check(t, pair.Write(s.path("gateway.pem"), s.path("gateway.key")))
	s.write("devices-ca.pem", string(s.ca.PEM()))
	for _, name := range names {
		s.newKey(name)
	}
	s.configure("")
	return s
}

func (s *azurePlant) newKey(name string) {
	key := make([]byte, 32)
	rand.Read(key)
	s.keys[name] = base64.StdEncoding.EncodeToString(key)
	s.write(name+".azurekey", s.keys[name]+"\n")
}

// configure writes config.yaml with an Azure listener for all identities.
func (s *azurePlant) configure(more string) {
	s.writeConfig(more)
	text := string(must(os.ReadFile(s.path("config.yaml")))(s.t))
	var clients []string
	for _, name := range s.names {
		clients = append(clients, fmt.Sprintf("%q: {key_file: %s.azurekey}", name, name))
	}
	text = strings.ReplaceAll(text, "    certificate: ", "    twin_report: {key: ''}\n    certificate: ")
	s.write("config.yaml", text)
	s.plant.listen(fmt.Sprintf("{listen: %q, tls: {cert: gateway.pem, key: gateway.key, client_ca: devices-ca.pem}, azure_clients: {%s}}",
		"tls://"+s.listen, strings.Join(clients, ", ")))
}

// withKey are the settings of a device that holds the identity's local key.
func (s *azurePlant) withKey(name string) nodesdk.Settings {
	return nodesdk.Settings{
		ConnectionString: fmt.Sprintf("HostName=%s;DeviceId=%s;SharedAccessKey=%s", gatewayName, name, s.keys[name]),
		Dial:             s.listen, CA: string(s.ca.PEM()),
	}
}

// withCertificate are those of a device with a certificate for the gateway.
func (s *azurePlant) withCertificate(name, cn string) nodesdk.Settings {
	pair := must(s.ca.Issue(certtest.Leaf{CN: cn}))(s.t)
	return nodesdk.Settings{
		ConnectionString: fmt.Sprintf("HostName=%s;DeviceId=%s;x509=true", gatewayName, name),
		Dial:             s.listen, CA: string(s.ca.PEM()), Cert: string(pair.CertPEM), Key: string(pair.KeyPEM),
	}
}

// client is what the gateway says of an identity's Azure SDK client.
func (s *azurePlant) client(name string) azureReport {
	r, err := s.status()
	if err != nil {
		return azureReport{}
	}
	for _, c := range r.AzureClients {
		if c.Identity == name {
			return c
		}
	}
	return azureReport{}
}

func (s *azurePlant) place(name string) nodesdk.Place {
	return nodesdk.Place{
		Hub: s.hub, Identity: name, Relayed: true,
		Subscribed: func() []string { return s.client(name).Subscribed },
		Knows: func(version int64) bool {
			_, body := s.ask("GET", "/v1/twin/"+name, "")
			var doc struct {
				Desired struct {
					Version int64 `json:"$version"`
				}
			}
			return json.Unmarshal([]byte(body), &doc) == nil && doc.Desired.Version >= version
		},
	}
}

func (s *azurePlant) online(names ...string) {
	s.t.Helper()
	for _, name := range names {
		eventually(s.t, 20*time.Second, name+" is subscribed at the hub", func() bool {
			return s.hub.Connected(name) && len(s.hub.Subscribed(name)) == 4
		})
	}
}

// The suite that the stand-in hub passes, with the gateway in the hub's place.
func TestAzureSDKWorksAgainstTheGateway(t *testing.T) {
	s := newAzurePlant(t, "press-7", "press-8")
	p := s.run()
	s.online("press-7", "press-8")
	for name, settings := range map[string]nodesdk.Settings{"press-7": s.withKey("press-7"), "press-8": s.withCertificate("press-8", "press-8")} {
		t.Run(name, func(t *testing.T) {
			d := nodesdk.Start(t, settings)
			d.Do("open", nil)
			nodesdk.Everything(t, d, s.place(name))
			if c := s.client(name); !c.Connected || !strings.HasPrefix(c.Software, "azure-iot-device/") || c.APIVersion == "" {
				t.Errorf("status %+v", c)
			}
			d.Do("close", nil)
			eventually(t, 5*time.Second, "the client has left", func() bool { return !s.client(name).Connected })
		})
	}
	if v := s.hub.Violations(); len(v) != 0 {
		t.Errorf("the gateway broke rules of the hub: %+v", v)
	}
	for _, secret := range []string{s.keys["press-7"], "SharedAccessSignature", "sig="} {
		if strings.Contains(p.log.String(), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}
