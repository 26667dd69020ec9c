// Package packet is the MQTT codec of both sides of the gateway: it turns bytes
// into control packets and back, for MQTT 3.1.1 and MQTT 5.
//
// It promises:
//   - nothing is allocated for a packet beyond the bytes that have really
//     arrived, and nothing at all for one that announces more than the limit;
//   - a packet that decodes obeys the rules of its version that can be seen in
//     the packet alone: flags, lengths, UTF-8, topic syntax, properties allowed
//     where they stand and given once;
//   - a decoder never panics, whatever the bytes.
//
// It knows no connection and no session: packet identifiers in use, order and
// time limits belong to the callers. There are no goroutines here.
//
// Decoded byte slices alias the frame they come from, which the next call of
// Reader.Next overwrites. Strings are copies.
//
// The rules are those of the OASIS standards MQTT 3.1.1 (2014) and MQTT 5.0
// (2019); clause numbers stand at the lines that obey them.
package packet
