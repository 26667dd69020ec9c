// Package cloud brings down what an IoT Hub has for an identity: cloud-to-device
// messages, direct methods and the twin. It stands between a session of the hub
// package, which calls it for every message from the hub, and the local side, which
// takes what it publishes and hands it what local clients answer.
//
// It promises:
//   - a C2D message is acknowledged to the hub only after it is synced in the
//     identity's C2D queue, in the order of delivery; it stays there until one local
//     subscriber or HTTP client has acknowledged it, or its time is over ($.exp, or
//     the identity's max_age);
//   - a C2D message whose $.mid was among the latest 128 is not delivered again, also
//     over restarts: who acknowledged is noted in the queue before the message leaves
//     it. A message without $.mid cannot be recognised;
//   - a method is answered exactly once, on the link that asked, within its time
//     limit; an answer that comes later is dropped, as the hub would;
//   - the desired document is on disk and retained for local clients; after a gap in
//     its versions it is asked for anew;
//   - Config.Desired hears of every desired document, also of the one on disk at the
//     start, and so can make some of it count;
//   - a change of reported properties is synced before the client is told yes, and
//     stays on disk until the hub has confirmed or refused it. Changes that wait are
//     merged as far as the result stays exact.
//
// # Topics
//
// For local clients: gateway/{identity}/c2d/{bag}, methods/{name}/{rid},
// twin/desired (retained) and status (retained), for Azure SDK clients only
// twin/change/{version}, a merge patch of the desired properties; from them methods/res/{status}/{rid}
// and twin/reported. {bag} is IoT Hub's property bag, percent-encoded k=v&k=v. {rid}
// is the gateway's own; the hub's is opaque text that a topic may not be able to carry.
//
// # On disk
//
// C2D messages and the notes about acknowledged ones are in the journal, in a queue
// with the name of QueueName: a message has Source "c2d" and the bag as Topic; a note
// has Source "done", the message's id as Topic, and the sequence of the message as its
// only property. In the folder twins, mode 0600 and replaced atomically, an identity
// has name.desired.json, the desired document as it was published, and
// name.reported.json with the members "unsent", a list of merge patches in order,
// "reported", the properties as the hub last had them, and "edition", their version
// as Azure SDK clients see it.
//
// # Goroutines
//
// Run owns a few workers, a ticker, and one goroutine for each callback or program
// that a method runs; it waits for all. Each identity is an actor: its state belongs to
// whichever worker runs its step, one at a time, so that a thousand identities need
// no goroutine of their own. What comes in from connections, the journal and
// listeners is put into the actor's box and never waits.
package cloud
