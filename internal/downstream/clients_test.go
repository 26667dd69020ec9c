package downstream

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	paho3 "github.com/eclipse/paho.mqtt.golang"

	"gatewayd/internal/packet"
)

// tool finds a program that developers may lack and CI must not.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

func run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

func (b *bench) hostPort() (host, port string) {
	host, port, _ = net.SplitHostPort(b.mqtt.Addr().String())
	return host, port
}

func TestMosquittoClientsWork(t *testing.T) {
	pub, sub := tool(t, "mosquitto_pub"), tool(t, "mosquitto_sub")
	for _, version := range []string{"mqttv311", "mqttv5"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			b := start(t, benchOptions{})
			host, port := b.hostPort()
			to := []string{"-h", host, "-p", port, "-V", version}
			for qos := range 2 {
				out, err := run(t, pub, append(to, "-t", "sensors/m/telemetry", "-q", strconv.Itoa(qos), "-m", "hello")...)
				if err != nil {
					t.Fatalf("QoS %d: %v %s", qos, err, out)
				}
			}
			eventually(t, "both are stored", func() bool { return len(b.sink.messages()) == 2 })
			if out, err := run(t, pub, append(to, "-t", "nowhere", "-q", "1", "-m", "x")...); err == nil && version == "mqttv311" {
				t.Errorf("a topic without a route was accepted: %s", out)
			} else if version == "mqttv5" && !strings.Contains(out, "not valid") && !strings.Contains(strings.ToLower(out), "topic name invalid") {
				t.Errorf("mosquitto_pub was not told why: %v %s", err, out)
			}
			if _, err := b.local.Publish(LocalMessage{Topic: "gateway/press-7/status", Payload: []byte(`{"connected":true}`), Retain: true, QoS: 1}); err != nil {
				t.Fatal(err)
			}
			out, err := run(t, sub, append(to, "-t", "gateway/+/status", "-q", "1", "-C", "1", "-W", "10", "-v")...)
			if err != nil || out != "gateway/press-7/status {\"connected\":true}\n" {
				t.Errorf("%v %q", err, out)
			}
			if out, _ := run(t, sub, append(to, "-t", "sensors/#", "-W", "3")...); !strings.Contains(out, "denied") && !strings.Contains(out, "rejected") {
				t.Errorf("subscribing to sensors was not refused: %q", out)
			}
		})
	}
}

func TestNodeClientWorks(t *testing.T) {
	node := tool(t, "node")
	if _, err := os.Stat(filepath.Join("nodemqtt", "node_modules")); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("npm ci was not run in internal/downstream/nodemqtt")
		}
		t.Skip("npm ci was not run in nodemqtt")
	}
	for _, version := range []string{"4", "5"} {
		for _, scheme := range []string{"mqtt", "ws"} {
			t.Run(scheme+version, func(t *testing.T) {
				t.Parallel()
				listen := map[string]string{"mqtt": "", "ws": "ws://127.0.0.1:0"}[scheme]
				b := start(t, benchOptions{config: MQTTConfig{Listen: listen}})
				b.local.Publish(LocalMessage{Topic: "gateway/press-7/status", Payload: []byte("up"), Retain: true, QoS: 1})
				out, err := run(t, node, "nodemqtt/sensor.js", scheme+"://"+b.mqtt.Addr().String(), version, "200")
				if err != nil {
					t.Fatalf("%v %s", err, out)
				}
				var seen struct {
					Received []struct {
						Topic, Payload string
						Retain         bool
						QoS            int
					}
					Acked, Granted int
					Refused        *int
				}
				if err := json.Unmarshal([]byte(out), &seen); err != nil {
					t.Fatalf("%v %s", err, out)
				}
				if seen.Acked != 200 || len(b.sink.messages()) != 200 {
					t.Errorf("acked %d, stored %d", seen.Acked, len(b.sink.messages()))
				}
				if len(seen.Received) != 1 || seen.Received[0].Payload != "up" || !seen.Received[0].Retain || seen.Granted != 1 {
					t.Errorf("received %s", out)
				}
				if version == "5" && (seen.Refused == nil || *seen.Refused != int(packet.TopicNameInvalid)) {
					t.Errorf("refusal: %s", out)
				}
				for i, m := range b.sink.messages() {
					if string(m.Payload) != fmt.Sprintf(`{"i":%d}`, i) {
						t.Fatalf("message %d is %s", i, m.Payload)
					}
				}
			})
		}
	}
}

func TestPahoForMQTT5Works(t *testing.T) {
	t.Parallel()
	b := start(t, benchOptions{})
	server, _ := url.Parse("mqtt://" + b.mqtt.Addr().String())
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	received := make(chan *paho.Publish, 10)
	cm, err := autopaho.NewConnection(ctx, autopaho.ClientConfig{
		ServerUrls: []*url.URL{server}, KeepAlive: 20, CleanStartOnInitialConnection: true,
		ClientConfig: paho.ClientConfig{ClientID: "paho", OnPublishReceived: []func(paho.PublishReceived) (bool, error){
			func(p paho.PublishReceived) (bool, error) { received <- p.Packet; return true, nil },
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := cm.AwaitConnection(ctx); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range 500 {
		group.Go(func() {
			r, err := cm.Publish(ctx, &paho.Publish{Topic: "sensors/p/telemetry", QoS: 1, Payload: fmt.Append(nil, i),
				Properties: &paho.PublishProperties{User: paho.UserProperties{{Key: "k", Value: "v"}}}})
			if err != nil || r.ReasonCode != 0 {
				t.Errorf("publish: %v %+v", err, r)
			}
		})
	}
	group.Wait()
	if n := len(b.sink.messages()); n != 500 {
		t.Errorf("stored %d", n)
	}
	if r, err := cm.Publish(ctx, &paho.Publish{Topic: "nowhere", QoS: 1}); err == nil || r.ReasonCode != packet.TopicNameInvalid {
		t.Errorf("no route: %v %+v", err, r)
	}
	if _, err := cm.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "gateway/press-7/c2d/#", QoS: 1}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := cm.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "#", QoS: 1}}}); err == nil {
		t.Error("subscribing to everything was granted")
	}
	acked := make(chan struct{})
	b.local.Publish(LocalMessage{Topic: "gateway/press-7/c2d/a=b", Payload: []byte("do"), QoS: 1, Acked: func() { close(acked) }})
	select {
	case p := <-received:
		if string(p.Payload) != "do" {
			t.Errorf("received %s", p.Payload)
		}
		<-acked
	case <-ctx.Done():
		t.Error("nothing received")
	}
	cm.Disconnect(ctx)
}

func TestPahoForMQTT3Works(t *testing.T) {
	t.Parallel()
	b := start(t, benchOptions{})
	received := make(chan paho3.Message, 10)
	o := paho3.NewClientOptions().AddBroker("tcp://" + b.mqtt.Addr().String()).SetClientID("paho3").SetProtocolVersion(4).
		SetAutoReconnect(false).SetConnectRetry(false)
	c := paho3.NewClient(o)
	if token := c.Connect(); !token.WaitTimeout(10*time.Second) || token.Error() != nil {
		t.Fatal(token.Error())
	}
	defer c.Disconnect(100)
	var tokens []paho3.Token
	for i := range 500 {
		tokens = append(tokens, c.Publish("sensors/p/telemetry", 1, false, fmt.Sprint(i)))
	}
	for _, token := range tokens {
		if !token.WaitTimeout(10*time.Second) || token.Error() != nil {
			t.Fatal(token.Error())
		}
	}
	if n := len(b.sink.messages()); n != 500 {
		t.Errorf("stored %d", n)
	}
	if token := c.Subscribe("gateway/#", 1, func(_ paho3.Client, m paho3.Message) { received <- m }); !token.WaitTimeout(10*time.Second) || token.Error() != nil {
		t.Fatal(token.Error())
	}
	b.local.Publish(LocalMessage{Topic: "gateway/press-7/methods/reboot/1", Payload: []byte("{}"), QoS: 1})
	select {
	case m := <-received:
		if m.Topic() != "gateway/press-7/methods/reboot/1" || m.Qos() != 1 {
			t.Errorf("received %s QoS %d", m.Topic(), m.Qos())
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing received")
	}
}
