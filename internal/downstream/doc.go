// Package downstream is the local side of the gateway: it takes readings from
// sensors, has them stored, and only then says yes.
//
// It promises:
//   - an acknowledgement (PUBACK, 202) is given only after the queue has called
//     back, which is after the sync; refusals carry the reason the protocol has;
//   - messages of one MQTT connection enter the queue in the order they came, and
//     their acknowledgements leave in that order, however many are in flight;
//   - one client cannot hurt another: connections, packets, topics, messages in
//     flight, subscriptions and rates are bounded before memory is spent on them,
//     and every wait for a peer has a time limit.
//
// The way of a message: a source (MQTT, HTTP) reads it and calls Gate.Accept,
// which asks the Router for an identity and hands it to the Sink. Every further
// kind of source does the same.
//
// The MQTT listener is a gate and not a broker: clients publish to routed topics
// and to the gateway's own, and subscribe under gateway/ only. It speaks 3.1.1 and
// 5, QoS 0 and 1. What MQTT offers and this does not: QoS 2 (MQTT 5 is told by
// Maximum QoS, 3.1.1 is disconnected), delivery between clients, retained messages
// of clients (RETAIN and wills are ordinary messages, marked by a property), shared
// subscriptions, extended authentication. Sessions are kept in memory.
//
// On listeners with AzureClients it also speaks IoT Hub's own dialect, for clients
// made with an Azure device SDK. They speak for one identity: their telemetry goes
// into its queue without a route, and their subscriptions, twin requests and answers
// to methods are translated from and to the local topics here, and nowhere else.
//
// Goroutines: each listener has one that accepts, one that enforces time limits
// and one per connection that reads; a second one exists per connection only while
// there is something to write. A silent client costs no buffer. All of them are
// started by Run and have ended when Run returns.
package downstream
