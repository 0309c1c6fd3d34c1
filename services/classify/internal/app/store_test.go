package app

import "testing"

var storeSamples = []sample{
	{label: "memcached", port: 11211, says: []string{">get key\r\n"}},
	{label: "memcached", port: 11211, says: []string{">\x80\x00\x00\x03\x00\x00\x00\x00" + u32(3) + z(12) + "key"}},
	{label: "memcached", port: 11211, udp: true, says: []string{">\x00\x01\x00\x00\x00\x01\x00\x00stats\r\n"}},
	{label: "resp", port: 6379, says: []string{">*1\r\n$4\r\nPING\r\n"}},
	{label: "resp", port: 6379, says: []string{">PING\r\n", "<+PONG\r\n"}},
	{label: "resp", port: 6379, says: []string{">SET a b\r\n", "<+OK\r\n"}},
	{label: "resp", port: 6379, says: []string{">PUBLISH a b\r\n", "<:2\r\n"}},
	{label: "resp", port: 6379, says: []string{">LRANGE a 0 1\r\n", "<*1\r\n$1\r\na\r\n"}},
	{label: "elasticsearch", port: 9300, says: []string{">ES" + u32(40) + z(8) + "\x08" + x(30)}},
	{label: "raft", port: 9001, says: []string{">" + l32(1) + z(4) + l32(1) + z(4) + l32(16) + z(4) + "10.0.0.1:9001\x00\x00\x00"}, whole: true},
	{label: "ceph", port: 6789, says: []string{"<ceph v027"}},
	{label: "lustre", port: 988, says: []string{">" + u32(0xacce7100) + z(20)}},
	{label: "thrift", port: 9090, says: []string{">" + u16(0x8001) + u16(1) + in32("ping") + z(5)}},
	{label: "thrift", port: 9090, says: []string{">" + in32(u16(0x8001)+u16(1)+in32("ping")+z(5))}},
	{label: "thrift", port: 6831, udp: true, says: []string{">\x82\x21\x01\x09emitBatch\x1c"}},
}

func FuzzStore(f *testing.F) { fuzzSamples(f, storeSamples) }
