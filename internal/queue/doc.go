// Package queue is durable store-and-forward for the identities of a gateway: append, read, acknowledge, prune. It knows nothing of MQTT or Azure.
//
// # Promises
//
//   - A message whose append completed is on the disk. It leaves only by Ack or by a counted policy (Stats.Dropped).
//   - Reading removes nothing. A new Reader starts at the oldest unacknowledged message; a resend has the same id and the same bytes.
//   - Within one priority of one queue messages come in the order of their appends; higher priorities come first.
//   - One write and one sync carry whatever all identities have waiting. Memory and start-up do not grow with the number of stored messages beyond
//     40 bytes per run of up to 1,024 messages of one identity that lie in one segment.
//   - An identity that is never drained keeps the space of its messages and nobody else's.
//   - Damage is limited to the touched records, counted, reported, and its bytes are kept in damaged/ for inspection. What is intact before and after it
//     is delivered.
//   - A file that may not be opened at a start, or whose beginning the device cannot read, is named and left alone. Its messages do not count as lost: they
//     are delivered after the first start that can read it, in their order, whatever the queues did meanwhile.
//   - A file that somebody removes while the journal runs takes its messages with it, counted as damage. What the device cannot read for a minute, while it reads
//     elsewhere, is given up likewise. Neither stops anything else.
//   - A disk that is full, read-only or failing, or a process without free descriptors, stops appends with ErrDisk; reading and acknowledging go on, and appends
//     work again when the cause goes. Under DropOldest a full disk makes the oldest messages leave until it takes the newest again.
//
// What it does not promise: exactly once. Acknowledgements reach the disk within a second of the call, with the next group or in one of their own; a
// crash before that causes resends of what was acknowledged in that second.
//
// # Goroutines
//
// Open starts nothing. Run is the writer: it forms groups, writes, syncs, calls back, and owns the segment in use. Run starts one more, the housekeeper,
// which writes indexes, prepares and removes files, expires and compacts, and waits for it. Everything else happens in the goroutine of the caller.
//
// Producers that wait for their syncs come back in a crowd. The writer waits for most of the crowd, half the time of a sync at most, before it takes the next
// group, and stops trying where they do not come: fewer syncs, fuller blocks, and no halves that wait for each other. Three seconds without a group, and the
// memory of the last burst is given back.
//
// A record whose neighbours in its lane lie in other frames is read in pieces of a few KiB; up to 900 KiB of them are kept for the queues that are drained next.
//
// Locks are taken in the order Queue.fill, Queue.mu, Journal.mu; only Queue.fill is held across a read, none across a write.
//
// # Files
//
// The folder holds "lock" (flock; a second instance gets ErrLocked), slots "%08x.jnl", and "damaged/". A slot is a preallocated file of SegmentBytes,
// used by one segment after another: a file that was written before costs the device half of a new one, so they stay until they have not been needed for a
// minute, but for two. Its name and size are synced, folder included, before it is first used and do not change while it is in use, so taking
// it into use again needs no sync of the folder, and a group that fits it cannot meet a full disk on file systems that honour fallocate. Two more slots
// of 256 KiB are the reserve: only acknowledgements may take them, in turn, so that a full disk can always be drained. Nor may messages take the last free
// slot: compaction needs it where every segment of a full disk holds messages of a queue that is not drained.
//
// All integers are little-endian; uvarint and varint are those of encoding/binary; checksums are CRC-32C. All but the one of the segment header are seeded
// with the segment's salt, which is random per use of a slot: what an earlier use left in the file never passes, and no payload can imitate a record.
//
// # Segment, version 1
//
//	0     segment header, 96 bytes
//	2048  the same again
//	4096  groups, each of one or more frames
//	end   index, aligned to 8, in sealed segments
//
// Segment header: magic "GWJRNL\r\n"; u32 version; u32 checksum of all that follows; u64 id, ascending over the life of the folder; u32 salt; u32 flags (1:
// written by compaction); 16 bytes instance, random per folder; 16 bytes hash of the machine id; i64 creation in Unix milliseconds; zeros. The first 16 bytes
// and the meaning of the checksum are the same in every version: a header that checks and has a newer version makes Open return *VersionError before
// anything is changed, unless its other copy says that this program knows the version. When both copies are lost, the salt is computed from the checksum of
// the first frame, whose body proves it, and the snapshot there gives the id.
//
// Frame: u32 magic "GWFM"; u32 checksum of the rest of the header; u64 number of the group, ascending by one in a segment; u32 length of the body; u32
// checksum of the body; u32 span to the next frame, padding included; u16 index in the group; u16 flags (1: last of its group); body. A frame is closed when
// it reaches 62 KiB. The end of a group is padded to a block of 4,096 bytes when that wastes at most a quarter of the group; otherwise the next group
// goes on in the same block.
//
// Body: items. Item: u32 checksum of the rest; u8 kind; u24 length; content. Places in a frame are offsets from its header.
//
//	1  base      u64 origin, random per Open; varint Unix milliseconds; u8 wall clock trusted; 16 bytes boot id; varint milliseconds since boot
//	2  string    bytes
//	3  meta      source, topic, route, content type, content encoding, output, each a reference; uvarint max age in milliseconds; uvarint n; n times key
//	             and value; then, of messages that may be sent together and by older versions not written, uvarint bytes, uvarint delay in
//	             milliseconds, u8 flags (1: lines, 2: gzip). A reference is a uvarint: odd = place of a string item, shifted; even = length, shifted, and the bytes.
//	4  message   u8 class (0 to 9 priority, 10 set aside; 0x10: id follows); uvarint queue; uvarint sequence; varint milliseconds after the base; uvarint
//	             place of the base; uvarint place of the meta; with 0x10: uvarint first sequence, uvarint sequence and u8 class of the copy that this one
//	             replaces, id, reason, u8 priority; payload
//	5  queue     uvarint queue; name
//	6  state     uvarint queue; next sequence, appended, acknowledged; drops by reason; lanes: u8 class, watermark, gaps above it. Absolute.
//	7  segment   uvarint id, slot; u32 salt; uvarint end; u8 flags (1: written by compaction; 2: could not be read; with id 0 nothing more is known of it,
//	             and end is the id of the newest segment that could)
//	8  freed     uvarint ids
//	9  snapshot  uvarint next queue number, uvarint id of the segment; first item of the first group of a segment
//	10 end       last item of that group
//	11 boot      16 bytes boot id; varint wall clock minus boot clock, milliseconds
//	12 forgot    uvarint queue
//	13 held      as state: how the queue stood when files first could not be read
//	14 again     uvarint place; the item at that place once more, header included
//
// Bases and metas that eight messages or more of a frame share are written a second time at its end, with the strings: damage to them would take all of these
// messages. So no damaged byte costs more than seven messages, nor more than one where many share a frame.
//
// The id of a message is origin, queue and sequence, hence costs nothing; it is spelled out only in copies with a new sequence. Times of a clock that was not
// set are corrected on reading by boot id and boot clock.
//
// Index: u32 magic "GWIX"; u32 checksum of the rest of header and directory; u32 runs; u32 length; u64 end of the groups; u64 zero; directory of 48 bytes per
// run: u32 queue; u8 class; 3 zeros; u32 records; u32 bytes; u64 first, last sequence; u32 offset, length of its list; zeros. List: u32 checksum; per record
// uvarint place (shifted by two; 2: same frame, relative to the record before; 1: next sequence), uvarint frame/8, uvarint sequence step, uvarint size. An
// index is not synced: it can always be rebuilt from the records.
//
// # Why every crash state is safe
//
// Assumed of the disk: fdatasync that returned means durable; a sector of 512 bytes is written as a whole or not; a write leaves alone what it does not
// address. Not assumed: any order of writes between two syncs; that a failed sync can be repeated.
//
// A group is synced before the next one is written to the same segment. So a frame that is followed by a valid frame of a later group, or that lies before the end
// which a later snapshot gives, was synced once: if it does not check, it is damage, and its intact items count. Anything else that does not check is the
// torn tail: its group was never acknowledged and is dropped as a whole.
//
//   - Append. Torn before the sync ended: dropped whole; nobody was told otherwise. Whole on the disk although the sync failed or the crash came before the
//     callback: delivered; the sensor sends it again, which at-least-once allows. Sequences that a failed group had are given out again: nobody saw them.
//   - Failed write or sync. The segment counts up to its last good sync. The group is written again to a new segment, whose snapshot says where the old one
//     ends, so what the old file holds beyond is never read. If that fails too, the group is refused and nothing is written to any of these files again.
//   - Roll. The new segment begins with a snapshot: segments that hold messages, queues, watermarks. It is synced before anything else goes there, and
//     nothing goes to the old segment once the new header may be on the disk. Torn: the snapshot lacks its end or its checksum, the segment before is
//     still complete, and nothing in the new one was acknowledged. A slot whose reuse was torn may show either header; the segment it held was noted as freed
//     and synced before.
//   - Ack. Memory first, disk later, absolute values: an older state only causes resends. The state of a group is written before its records.
//   - Prune. A segment without waiting messages is noted as freed; its slot is used again or removed only after that is synced. Until then a crash
//     finds it whole. After it, a slot that is in no list is free whatever its header says; whether its removal reached the disk makes no difference.
//   - Compact. Messages that wait are copied to a segment of their own, complete with index, and synced. One record then lists the new segment and frees
//     the old ones, in one group. Before it: the new file is in no list and free. After it: the old ones are. When that record's sync fails, both stay
//     until a newer snapshot names the old ones.
//   - Set aside, put back. The copy's record names the original it replaces: one record, so the message is in exactly one of the two places.
//   - Delete a queue. Its messages are removed, then one record forgets it; in between it is a queue with fewer messages.
//   - Restart. A segment that was in use is never appended to again: bytes of a torn tail cannot come back to life behind new ones.
//   - Unreadable at a start. The file stays listed in every snapshot, with the watermarks of that moment, until a start can read it; then those decide which
//     of its messages wait. A file that no list names may be newer than all that can be read: numbers of segments, queues and messages are moved on past
//     whatever it can hold, and what compaction wrote since the newest readable snapshot counts. Watermarks go back for these lanes: a crash before the next
//     group only repeats this. A second restart soon after may send messages again that share a segment with them.
//   - A snapshot that is damaged later: the one before it is used and all records since are applied. No snapshot at all: every segment that checks
//     counts, and messages that were delivered may be sent again.
package queue
