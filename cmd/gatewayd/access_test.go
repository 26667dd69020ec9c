package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/downstream"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/packet"
)

// mosquittoPub publishes one message with QoS 1 as Debian's client does.
func mosquittoPub(t *testing.T, address, topic, body string, more ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	host, port, err := net.SplitHostPort(address)
	args := []string{"-V", "mqttv5", "-q", "1", "-t", topic, "-m", body}
	if err == nil {
		args = append(args, "-h", host, "-p", port)
	} else {
		args = append(args, "--unix", address)
	}
	out, err := exec.CommandContext(ctx, "mosquitto_pub", append(args, more...)...).CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("mosquitto_pub does not end: %s", out)
	}
	return string(out), err
}

// users writes a users file with one line per name and password.
func (s *plant) users(pairs ...string) {
	s.t.Helper()
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		b.WriteString(must(downstream.UserLine(pairs[i], pairs[i+1]))(s.t) + "\n")
	}
	s.write("users", b.String())
}

// arrived waits for a message with that body and tells who it came from.
func (s *plant) arrived(body string) (identity string) {
	s.t.Helper()
	eventually(s.t, 15*time.Second, body+" arrives at the hub", func() bool {
		for _, m := range s.hub.Messages() {
			if string(m.Body) == body {
				identity = m.Properties["sensor"]
				return true
			}
		}
		return false
	})
	return identity
}

func (s *plant) neverArrived(body string) {
	s.t.Helper()
	for _, m := range s.hub.Messages() {
		if string(m.Body) == body {
			s.t.Errorf("%q arrived at the hub", m.Body)
		}
	}
}

func TestUsersMayDoWhatTheRulesSay(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7", "press-8")
	s.users("press-7", "secret-seven", "press-8", "secret-eight", "idle", "secret-idle")
	guarded := freeAddress(t)
	s.listen(fmt.Sprintf(`{listen: %q, users_file: users, acl: [{user: "*", publish: [sensors/%%u/#]}, {user: press-8, publish: [sensors/press-7/lent]}]}`, guarded))
	s.run()
	for _, tt := range []struct {
		name, topic, user, password string
		want                        string // "" = accepted
	}{
		{"as itself", "sensors/press-7/a", "press-7", "secret-seven", ""},
		{"as another", "sensors/press-8/a", "press-7", "secret-seven", "Not authorized"},
		{"as another, allowed by name", "sensors/press-7/lent", "press-8", "secret-eight", ""},
		{"what only another may", "sensors/press-8/lent", "idle", "secret-idle", "Not authorized"},
		{"with a wrong password", "sensors/press-7/a", "press-7", "secret-eight", "Connection Refused|Connection error|Not authorized|Bad user"},
		{"an unknown user", "sensors/press-7/a", "press-9", "secret-nine", "Connection Refused|Connection error|Not authorized|Bad user"},
		{"without a login", "sensors/press-7/a", "", "", "Connection Refused|Connection error|Not authorized|Bad user"},
	} {
		var login []string
		if tt.user != "" {
			login = []string{"-u", tt.user, "-P", tt.password}
		}
		body := "users: " + tt.name
		out, err := mosquittoPub(t, guarded, tt.topic, body, login...)
		if tt.want == "" {
			if err != nil || out != "" {
				t.Errorf("%s: %v %s", tt.name, err, out)
				continue
			}
			s.arrived(body)
			continue
		}
		told := false
		for _, want := range strings.Split(tt.want, "|") {
			told = told || strings.Contains(out, want)
		}
		if !told {
			t.Errorf("%s: %v %q, want %q", tt.name, err, out, tt.want)
		}
		defer s.neverArrived(body)
	}
}

// A reload takes the users as they are in the file now, and leaves everybody who
// is connected alone; a file that cannot be read changes nothing.
func TestReloadReadsUsersAndTokensAgain(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	s.users("press-7", "first")
	s.write("tokens", "first-token-of-all\n")
	guarded := freeAddress(t)
	s.listen(fmt.Sprintf(`{listen: %q, users_file: users, acl: [{user: "*", publish: [sensors/%%u/#]}]}`, guarded))
	config := string(must(os.ReadFile(s.path("config.yaml")))(t))
	s.write("config.yaml", strings.Replace(config, fmt.Sprintf("http: [{listen: %q", s.http), fmt.Sprintf("http: [{token_file: tokens, listen: %q", s.http), 1))
	s.run()
	stays := must(net.Dial("tcp", guarded))(t)
	defer stays.Close()
	hello := must(packet.Connect{Version: packet.V311, CleanStart: true, ClientID: "stays", HasUsername: true, Username: "press-7",
		HasPassword: true, Password: []byte("first")}.Append(nil, packet.V311))(t)
	must(stays.Write(hello))(t)
	answers := packet.NewReader(stays, 1<<10)
	if f, err := answers.Next(); err != nil || f.Type != packet.CONNACK || f.Body[1] != 0 {
		t.Fatalf("login: %v %v", f, err)
	}
	login := func(password, token, want string) {
		t.Helper()
		_, err := mosquittoPub(t, guarded, "sensors/press-7/a", "reload: "+password, "-u", "press-7", "-P", password)
		status := s.post("sensors/press-7/a", "reload: "+token, token)
		if got := fmt.Sprint(err == nil, " ", status); got != want {
			t.Errorf("%s and %s: %s, want %s", password, token, got, want)
		}
	}
	login("first", "first-token-of-all", "true 202")
	login("second", "second-token-of-all", "false 401")
	s.users("press-7", "second")
	s.write("tokens", "second-token-of-all\n")
	if code, out := s.exitCode("reload", "-c", "config.yaml"); code != exitOK || !strings.Contains(out, "nothing changed") {
		t.Fatalf("reload exits with %d: %s", code, out)
	}
	login("first", "first-token-of-all", "false 401")
	login("second", "second-token-of-all", "true 202")
	s.write("users", "press-7 third\n")
	if code, out := s.exitCode("reload", "-c", "config.yaml"); code == exitOK || !strings.Contains(out, "downstream.mqtt[0].users_file") {
		t.Errorf("reload of a broken users file exits with %d: %s", code, out)
	}
	login("second", "second-token-of-all", "true 202")
	b := must(packet.Publish{Topic: "sensors/press-7/a", QoS: 1, ID: 1, Payload: []byte("still connected")}.Append(nil, packet.V311))(t)
	must(stays.Write(b))(t)
	if f, err := answers.Next(); err != nil || f.Type != packet.PUBACK {
		t.Errorf("the connection from before the reloads: %v %v", f, err)
	}
}

func TestCertificateNamesTheUser(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7", "press-8")
	local := must(certtest.NewCA("plant floor"))(t)
	s.write("floor.pem", string(local.PEM()))
	server := must(local.Issue(certtest.Leaf{CN: "localhost", DNS: []string{"localhost"}}))(t)
	check(t, server.Write(s.path("server.pem"), s.path("server.key")))
	client := must(local.Issue(certtest.Leaf{CN: "press-7"}))(t)
	check(t, client.Write(s.path("client.pem"), s.path("client.key")))
	stranger := must(s.ca.Issue(certtest.Leaf{CN: "press-7"}))(t)
	check(t, stranger.Write(s.path("stranger.pem"), s.path("stranger.key")))
	guarded := freeAddress(t)
	s.listen(fmt.Sprintf(`{listen: "tls://%s", tls: {cert: server.pem, key: server.key, client_ca: floor.pem}, acl: [{user: "*", publish: [sensors/%%u/#]}]}`, guarded))
	s.run()
	_, port, _ := net.SplitHostPort(guarded)
	address := net.JoinHostPort("localhost", port)
	trust := []string{"--cafile", s.path("floor.pem")}
	as := func(name string) []string {
		return append(trust, "--cert", s.path(name+".pem"), "--key", s.path(name+".key"))
	}
	if out, err := mosquittoPub(t, address, "sensors/press-7/cn", "cn: itself", as("client")...); err != nil || out != "" {
		t.Errorf("as itself: %v %s", err, out)
	}
	s.arrived("cn: itself")
	if out, _ := mosquittoPub(t, address, "sensors/press-8/cn", "cn: another", as("client")...); !strings.Contains(out, "Not authorized") {
		t.Errorf("as another: %s", out)
	}
	if out, err := mosquittoPub(t, address, "sensors/press-7/cn", "cn: other name", append(as("client"), "-u", "press-8")...); err == nil {
		t.Errorf("with another user name than the CN: accepted: %s", out)
	}
	if out, err := mosquittoPub(t, address, "sensors/press-7/cn", "cn: stranger", as("stranger")...); err == nil {
		t.Errorf("with a certificate of another CA: accepted: %s", out)
	}
	if out, err := mosquittoPub(t, address, "sensors/press-7/cn", "cn: nobody", trust...); err == nil {
		t.Errorf("without a certificate: accepted: %s", out)
	}
	for _, body := range []string{"cn: another", "cn: other name", "cn: stranger", "cn: nobody"} {
		s.neverArrived(body)
	}
}

func TestWebSocketAndUnixSocketAreListenersLikeTheOthers(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	web, socket := "ws://"+freeAddress(t), s.path("mqtt.sock")
	s.listen(fmt.Sprintf("{listen: %q}", web), fmt.Sprintf(`{listen: "unix://%s"}`, socket))
	p := s.run()
	if out, err := mosquittoPub(t, socket, "sensors/press-7/unix", "over the socket"); err != nil || out != "" {
		t.Errorf("unix socket: %v %s", err, out)
	}
	if sensor := s.arrived("over the socket"); sensor != "unix" {
		t.Errorf("it came from %q", sensor)
	}
	f := s.fleetAt(web, 4, 10, 200, 0)
	eventually(t, 15*time.Second, "messages over the WebSocket", func() bool { return f.acked() > 200 })
	f.end()
	s.drained(20 * time.Second)
	f.account(t, s.hub.Messages())
	if code := p.stop(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket's file stays behind: %v", err)
	}
}
