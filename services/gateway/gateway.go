// Package gateway is the front door: REST over HTTPS with tokens, a live page, and nothing of its own to lose. It
// asks the other services over gRPC and follows what classify and enforce publish on NATS.
//
// REST and CRUD are in Go in this project only with a reason. The gateway's: it deploys as one static binary with
// its page inside, it shares the protobuf contracts with the services it asks, and it fans out the events of a
// packet mesh to hundreds of clients at the rate at which they are made.
package gateway
