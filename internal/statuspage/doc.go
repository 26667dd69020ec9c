// Package statuspage is what a browser shows of a running gateway: an overview, a page per identity, live by
// Server-Sent Events, from files inside the program.
//
// It is a package of its own, and not part of cmd/gatewayd, because it needs nothing of the gateway but a [View]
// now and then, and because its promises are those of a web page.
//
// # What it promises
//
// The page needs nothing from elsewhere: no other host is ever asked. Names of identities, sensors and topics come
// from outside and may be hostile; they reach the document only as text nodes and through html/template, and the
// content security policy admits no script but the page's own files.
//
// It reads only. What changes the gateway (reload, level of the log, putting set-aside messages back) is there only
// with tokens, and each such request needs one: as a bearer token, or through a login whose cookie other sites
// cannot use. See [Guard] for who may read.
//
// Costs are bounded. Nothing is computed while nobody looks but one sample per minute. With readers, one View is
// taken every two seconds for all of them, and only what has changed since is sent. At most [MaxReaders] are served.
// History is two numbers per identity and minute for an hour, about 0.5 KiB; events are [MaxEvents] over all and
// [MaxIdentityEvents] for each identity.
//
// # Goroutines
//
// Run owns one, which samples and feeds the readers; each reader is served on its request's own goroutine, and
// ends when Run does.
package statuspage
