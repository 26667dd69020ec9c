// Package hub is the cloud side of the gateway: one Session per identity, which
// holds its MQTT 3.1.1 connection to Azure IoT Hub, publishes what the identity's
// queue holds, and moves to a renewed certificate without losing or delaying a
// message.
//
// # What it promises
//
//   - A message is acknowledged to the queue only after the hub's PUBACK, in the
//     order of sending. A connection that ends is followed by one with a fresh queue
//     reader, so what was not acknowledged is sent again with the same message id.
//   - A connection is made with one credential, given to dial, and is never used
//     again after its end. There is no TLS session cache, so no identity can be
//     logged in as another or with its old certificate.
//   - A finished handshake and a CONNACK prove nothing: with TLS 1.3 a refused
//     certificate shows at the first read, and a hub out of quota accepts and then
//     cuts. Proved means a message acknowledged, or another answer on a connection
//     that then lived on. Only progress resets the waits between attempts.
//   - A candidate certificate is tried beside the working connection: TLS first,
//     while messages flow; then the outstanding acknowledgements; then CONNECT. What
//     fails, in whatever way, ends with the old certificate carrying on, and counts
//     against the candidate only if the old one gets through right after. The old one
//     stays at hand until a message is acknowledged under the new one: if that fails
//     first, and the old one carries a message, the new one is taken back.
//   - A hub that throttles, which shows as late acknowledgements and closed connections,
//     gets fewer messages at a time; one on which another client uses the identity is
//     left alone for minutes.
//   - A message that the hub would not take is set aside with a reason before it is
//     sent; one that the hub answers by closing connections is found out and set
//     aside, when others are seen to pass.
//
// # The way of a message
//
// [Session.Run] → serve → pump → next → publish (appendTopic, undeliverable)
// → conn.send → the hub → conn.read → settle → Queue.Ack.
//
// # Packs
//
// Readings whose route says so travel together. They are packed when they are sent,
// from what the queue holds, because only then is it known what waits: after an
// outage packs are full. But a pack that is sent again must be the same again, or a
// reading would arrive under two ids and nobody could tell. Boundaries that follow
// from the readings alone, such as their times, do not do that: what may join depends
// on what was durable at the moment of sending, and on clocks that are corrected.
// So the members of a pack are written down before it is sent, in a queue of its
// own beside the identity's (packlog.go gives the format). That costs no sync of its
// own: the record shares one with whatever arrives, several packs share one record's
// wait, and packs are made ahead while the window is full.
//
//	read → open pack → full, or max_delay over → closed → record on disk → sent →
//	PUBACK → members acknowledged → record acknowledged
//
// A closed pack only loses members. A new reader, after a reconnect or a restart,
// puts each member back where the record says; open packs were never sent and are
// made anew. The members are acknowledged before the record, and one group of the
// journal takes both or the first alone, so a crash leaves no member without its
// record. A record whose members are all gone goes when the reader has passed them.
//
// A pack is one message in the window, for the pacer and for poison. When it is
// condemned it is taken apart: a pack of each member, written down before the old
// record goes; of two records that name a message the later one holds.
//
// # The way of a certificate
//
// Candidate → beginCut → transportReady → stepCut → answered → take → prove →
// Commit; or cutFailed → the old connection answers → Miss. With no connection:
// choose → attempt → weigh. After Commit, until a message is acknowledged: spare.
//
// # Ways out
//
// dialer.walk goes one way: name, TCP, proxy, TLS, upgrade to WebSocket. The name is
// resolved at each dial, by the proxy when there is one. With [Auto], ways remembers
// that port 8883 was blocked, so that 443 goes first; beginReturn looks rarely whether
// it still is, and goes back by the cut-over of a renewed certificate. On port 443 a hub that speaks
// TLS 1.2 may ask for the certificate by renegotiation, which is allowed once there and
// nowhere else; Go has no server that does it, so the stand-in hub cannot, and openssl's
// server stands in for it.
// With KeepAliveAuto, keeper finds how much silence the link bears.
// [Probe] and [Reach] go the same ways for commands that ask.
//
// # Goroutines
//
// Run's own is the only one that publishes and writes. Each connection has one that
// reads, and a timer that watches the keep-alive without needing either of them.
// Dialling, of a trial or not, has one of its own: a handshake grows its stack, and
// one that stays would keep that. Run waits for all of them. An idle identity thus
// costs two goroutines with 4 KiB of stack each, as long as what Run keeps on its
// stack while it waits is below 1.2 KiB (results are pointers for that), and with TLS
// the memory that BenchmarkIdleIdentities reports.
//
// # Outside facts
//
// Topics, user name, property bag, limits and the ways in which IoT Hub refuses are
// from https://learn.microsoft.com/azure/iot/iot-mqtt-connect-to-iot-hub and
// https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-messages-construct;
// where they leave doubt, the code is right under either answer.
package hub
