// Package certstore turns certificate files into credentials and decides which of them an identity uses.
//
// # What it promises
//
// The way of a certificate is: file event or poll, settled, loaded, validated, candidate, and then, when a session
// has tried it against the hub, committed or missed. Two things hold at every step:
//
//   - A bad file never takes the current credential away. Missing, torn, mismatched, expired and refused files are a
//     state and one log line; Current keeps returning what worked.
//   - A torn or mixed pair is never offered. What Candidate returns was read twice with the same result, is whole PEM
//     from one resolved folder, and its key signs for its leaf.
//
// The package knows nothing of MQTT or of the hub. A session tells it what the hub did: Commit when a connection made
// with a credential was proved (accepted and one acknowledged round trip), Miss when a trial failed and the current
// credential got through right after, NoVerdict when both failed, which decides nothing.
//
// # Goroutines
//
// Open and New start nothing; what New makes is read for the first time in a turn. Watcher.Run is the scheduler of all
// followers: it hands out their turns, a few at a time, each in a goroutine that ends with the turn, so that an idle
// identity has none. A file system that hangs delays only those whose files are on it, and holds few threads. One more
// goroutine reads file events. Run waits for all of them, for files that hang only for a moment. Clock.Run is a loop of
// its own.
//
// # What is on disk
//
// Under Options.StateDir, in the folder "certificates" (0700), for each identity NAME.json (generation, fingerprint of
// the last proved credential, time and gap of the last rotation; no secret), and, only with KeepLastGood, NAME.pem
// (0600): the last proved chain, then its key as unencrypted PKCS#8. The clock keeps its last good time in the file
// "clock" beside that folder. Every file is replaced by writing a temporary one, syncing it, renaming it and syncing
// the folder, so that a power cut leaves the old or the new content.
package certstore
