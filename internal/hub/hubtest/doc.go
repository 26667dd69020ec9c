// Package hubtest is a stand-in for the device endpoint of Azure IoT Hub: real MQTT 3.1.1 over mutual TLS,
// strict where the hub is strict, with switches where its documentation leaves doubt, a ledger of what arrived
// and faults on request. Tests use it, and so does the demonstration, in one process.
//
// # What it promises
//
// It accepts what the released Azure SDKs send and refuses what breaks a documented rule, in the way the hub
// is known to refuse it: CONNACK 5, a TLS alert or a closed connection without a word. Every broken rule is
// also noted in [Hub.Violations], so a test of a well-behaved client wants that list empty.
//
// A message is in the ledger before its PUBACK is sent. Acknowledgements go out in the order of receipt. One
// identity has one connection: a second CONNECT closes the first. There is no state outside a [Hub], and
// everything but the queues of real sockets runs in the virtual time of testing/synctest, given a
// [PipeListener].
//
// # Goroutines
//
// Run owns one goroutine that accepts, and for each connection one that reads and judges and one that writes
// and watches the clock. Run waits for all of them. Callbacks run on the reading goroutine of their connection
// and without locks held.
//
// # What it is not
//
// It does not route, store across restarts, issue certificates, or speak HTTPS and AMQP. Rates and quotas are
// simple pacers, not the hub's traffic shaping.
//
// # Rules
//
// The numbers are those of [Violation.Row] and [Connection.Row]. A dagger marks behaviour that the hub's
// documentation does not settle; [Options] has a switch for most.
//
//	 1  plaintext on the TLS port: close
//	 2  TLS below 1.2: handshake failure
//	 3  newer endpoint without server name or with a weak suite: handshake failure
//	 4  malformed client certificate, or no proof of its key: handshake failure
//	 5  † certificate expired, not yet valid, or of an unknown CA: CONNACK 5, TLS alert or silent close
//	 6  first packet not CONNECT, or a second CONNECT: close
//	 7  † no CONNECT within 60 s: close
//	 8  † other protocol level: CONNACK 1; other protocol name or reserved flag: close
//	 9  client id empty or not the user name's identity: CONNACK 5
//	10  user name absent or malformed, no api-version, encoded ids: CONNACK 5 (edge: 3)
//	11  host of the user name is not this hub: CONNACK 5
//	12  † unknown api-version: CONNACK 5
//	13  unknown or disabled identity, or another case: CONNACK 5
//	14  certificate identity without certificate: CONNACK 5
//	15  † certificate and password: CONNACK 5
//	16  key identity with only a certificate, certificate identity with only a token: CONNACK 5
//	17  CN is not the device id: CONNACK 5
//	18  † leaf is a CA; registered CA expired: CONNACK 5
//	19  † extended key usage without clientAuth: CONNACK 5
//	20  thumbprint in neither slot: CONNACK 5
//	21  managed certificate with a rotated identifier: CONNACK 5
//	22  module certificate whose CN is not device/module; any module certificate in edge mode: CONNACK 5
//	23  token expired, wrongly signed, or for something else: CONNACK 5
//	24  the identity connects again: the older connection is closed († its will is published)
//	25  † connect rate exceeded: late answer, then CONNACK 5 or close
//	26  silence of 1.5 keep-alives, at most 1767 s: close, will published
//	27  identity disabled or deleted, CA or thumbprint removed: close
//	28  token expires: close
//	29  † certificate expires while connected: nothing, or close
//	30  malformed packet, bad UTF-8, wildcard in a topic name, packet id 0: close
//	31  PUBLISH with QoS 2: close
//	32  RETAIN: accepted, not retained, property mqtt-retain
//	33  message above 256 KB: close
//	34  † unknown topic, or another identity's: close
//	35  † property bag with a bad escape, a raw / or ?, or a duplicate key: close in strict mode
//	36  + in a property bag: accepted, a literal plus
//	37  † unknown $. property: close in strict mode
//	38  † message id too long or of foreign characters: close in strict mode
//	39  † more than 16 unacknowledged publishes: reading stops
//	40  throttled: PUBACKs late, past ten seconds of backlog close
//	41  quota spent: no PUBACK, or close at the first publish
//	42  resend after reconnect: accepted again and counted
//	43  † unknown filter: SUBACK 0x80 (edge: granted)
//	44  QoS 2 asked: 1 granted
//	45  † too many filters: SUBACK 0x80
//	46  † module asks for C2D, device for inputs: SUBACK 0x80
//	47  C2D not acknowledged within 60 s, or connection lost: sent again until its time to live ends
//	48  † PUBACKs out of order: close in strict mode
//	49  51st queued C2D message: refused to the sender
//	50  method answer with unknown or reused $rid, or late: ignored
//	51  † method answer with a status that is no integer, or a body that is not JSON: close in strict mode
//	52  method answer above 128 KB: dropped, the caller gets an error
//	53  twin request without $rid: close
//	54  reported patch is not a JSON object: 400
//	55  reported patch breaks a limit of depth, key, value, size or integer range: 400
//	56  † $version condition fails: 412
//	57  twin rate exceeded: 429
//	58  † no subscription to twin replies: the patch is applied, nothing is answered
//	59  WebSocket request for another path, host, subprotocol or query, or with credentials: HTTP error
package hubtest
