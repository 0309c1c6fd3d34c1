package bus

import (
	"slices"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidegate-mesh/tidegate/libs/pki"
)

const persistDurable = "persist" // persist's consumers, as are the hooks': nobody else may read with or touch them

// Permission is what an identity may publish and subscribe to. Denied wins over allowed. Everything else is refused.
// Answers: it may also answer, once, each request that it was sent.
type Permission struct {
	Publish, Deny, Subscribe []string
	Answers                  bool
}

// Permissions is the one table of who may do what on NATS, by the certificate's common name. Ingest is absent: it
// speaks gRPC only.
//
// JetStream is asked by publishing to $JS.API.>, so its rights are publish rights as well. All services may look at
// the streams and make missing ones; only classify may change limits, because a stream's configuration could also
// redirect it.
func Permissions() map[string]Permission {
	return map[string]Permission{
		pki.Classify: grant(pki.Classify,
			setup(), allow("$JS.API.STREAM.UPDATE.>"),
			allow(SubjectFlows+">", SubjectAttack+">", SubjectVerdict+">", SubjectWindow+">", SubjectUsualStore, SubjectUsualLoad),
			reclaim(), follow(), readBucket(BucketRules), writeBucket(BucketRules),
			readBucket(BucketLists), readObjects(BucketListEntries)),
		pki.Enforce: grant(pki.Enforce,
			setup(), allow(SubjectEnforcement+">"), reclaim(), Permission{Subscribe: []string{AllFlows}},
			readBucket(BucketRules), writeBucket(BucketRules), readBucket(BucketControl), writeBucket(BucketControl),
			readBucket(BucketLists), readObjects(BucketListEntries)),
		pki.Persist: grant(pki.Persist,
			setup(), readStream(StreamFlows, persistDurable), readStream(StreamEvents, persistDurable), hooks(),
			Permission{Subscribe: []string{subjectUsual + ">"}, Answers: true}),
		pki.Gateway: grant(pki.Gateway,
			setup(), allow(AllAudits), reclaim(), follow(), Permission{Subscribe: []string{AllWindows}},
			readBucket(BucketRules), readBucket(BucketNodes), readBucket(BucketControl),
			readBucket(BucketRequests), writeBucket(BucketRequests),
			readBucket(BucketLists), writeBucket(BucketLists), readObjects(BucketListEntries), writeObjects(BucketListEntries)),
		pki.Tidegate: {Publish: []string{">"}, Subscribe: []string{">"}},
	}
}

// inboxPrefix keeps an identity's replies where no other may listen.
func inboxPrefix(identity string) string { return "_INBOX." + Token(identity) }

// grant adds up parts and what every service has: its replies and its own heartbeats.
func grant(identity string, parts ...Permission) Permission {
	p := Permission{
		Publish:   []string{"$KV." + BucketNodes + "." + Token(identity) + ".>"},
		Subscribe: []string{inboxPrefix(identity) + ".>"},
	}
	for _, part := range parts {
		p.Publish = append(p.Publish, part.Publish...)
		p.Deny = append(p.Deny, part.Deny...)
		p.Subscribe = append(p.Subscribe, part.Subscribe...)
		p.Answers = p.Answers || part.Answers
	}
	for _, list := range []*[]string{&p.Publish, &p.Deny, &p.Subscribe} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return p
}

func allow(subjects ...string) Permission { return Permission{Publish: subjects} }

// setup is EnsureStreams.
func setup() Permission {
	p := allow("$JS.API.INFO")
	for _, stream := range []string{
		StreamFlows, StreamEvents, kvStream(BucketRules), kvStream(BucketNodes), kvStream(BucketControl), kvStream(BucketRequests),
		kvStream(BucketLists), objectStream(BucketListEntries),
	} {
		p.Publish = append(p.Publish, "$JS.API.STREAM.INFO."+stream, "$JS.API.STREAM.CREATE."+stream)
	}
	return p
}

// readStream is a durable consumer of that name on a stream.
func readStream(stream, durable string) Permission {
	name := stream + "." + durable
	return allow(
		"$JS.API.CONSUMER.CREATE."+name, "$JS.API.CONSUMER.CREATE."+name+".>", // with one filter it is part of the subject
		"$JS.API.CONSUMER.INFO."+name, "$JS.API.CONSUMER.MSG.NEXT."+name, "$JS.ACK."+name+".>",
	)
}

// hooks are consumers of their own, and the stream of EVE lines.
func hooks() Permission {
	p := allow(SubjectEVE+"*", "$JS.API.STREAM.INFO."+StreamEVE, "$JS.API.STREAM.CREATE."+StreamEVE)
	for _, stream := range []string{StreamEvents, StreamFlows} {
		for _, durable := range HookNames(stream) {
			name := stream + "." + durable
			p.Publish = append(p.Publish, "$JS.API.CONSUMER.CREATE."+name, "$JS.API.CONSUMER.INFO."+name,
				"$JS.API.CONSUMER.MSG.NEXT."+name, "$JS.ACK."+name+".>")
		}
	}
	return p
}

// follow is an ordered consumer of the events; its names are random, so all but persist's are allowed.
func follow() Permission {
	p := Permission{}
	for _, verb := range []string{"CREATE", "INFO", "MSG.NEXT", "DELETE"} {
		api := "$JS.API.CONSUMER." + verb + "." + StreamEvents + "."
		p.Publish = append(p.Publish, api+">")
		for _, name := range append(HookNames(StreamEvents), persistDurable) {
			p.Deny = append(p.Deny, api+name, api+name+".>")
		}
	}
	return p
}

// reclaim is for publishers of events: room in a full stream.
func reclaim() Permission {
	return allow("$JS.API.CONSUMER.LIST."+StreamEvents, "$JS.API.STREAM.PURGE."+StreamEvents)
}

func kvStream(bucket string) string { return "KV_" + bucket }

func objectStream(bucket string) string { return "OBJ_" + bucket }

// readObjects is to get objects.
func readObjects(bucket string) Permission { return readStreamAlone(objectStream(bucket)) }

// writeObjects is to put and delete objects.
func writeObjects(bucket string) Permission {
	return allow("$O."+bucket+".>", "$JS.API.STREAM.PURGE."+objectStream(bucket))
}

// readBucket is to get and watch keys; watches are consumers of their own.
func readBucket(bucket string) Permission {
	return readStreamAlone(kvStream(bucket))
}

// readStreamAlone is to read a stream by consumers of one's own.
func readStreamAlone(stream string) Permission {
	return allow(
		"$JS.API.STREAM.MSG.GET."+stream, "$JS.API.DIRECT.GET."+stream, "$JS.API.DIRECT.GET."+stream+".>",
		"$JS.API.CONSUMER.CREATE."+stream, "$JS.API.CONSUMER.CREATE."+stream+".>",
		"$JS.API.CONSUMER.INFO."+stream+".>", "$JS.API.CONSUMER.DELETE."+stream+".>", "$JS.FC."+stream+".>",
	)
}

// writeBucket is to put and delete keys and to remove old markers of deletions.
func writeBucket(bucket string) Permission {
	return allow("$KV."+bucket+".>", "$JS.API.STREAM.PURGE."+kvStream(bucket))
}

// serverPermissions is the permission in the server's form.
func (p Permission) serverPermissions() *server.Permissions {
	out := &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: p.Publish, Deny: p.Deny},
		Subscribe: &server.SubjectPermission{Allow: p.Subscribe},
	}
	if p.Answers {
		out.Response = &server.ResponsePermission{MaxMsgs: server.DEFAULT_ALLOW_RESPONSE_MAX_MSGS, Expires: server.DEFAULT_ALLOW_RESPONSE_EXPIRATION}
	}
	return out
}
