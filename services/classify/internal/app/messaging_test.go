package app

import "testing"

var messagingSamples = []sample{
	{label: "amqp", port: 5672, says: []string{">AMQP\x00\x00\x09\x01"}},
	{label: "mqtt", port: 1883, says: []string{">\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04abcd"}},
	{label: "mqtt", port: 1883, says: []string{">\xc0\x00", "<\xd0\x00"}},
	{label: "kafka", port: 9092, says: []string{">" + in32(u16(18)+u16(3)+u32(1)+in16("probe-1")+z(2))}},
	{label: "stomp", port: 61613, says: []string{">CONNECT\naccept-version:1.2\nhost:a\n\n\x00"}},
	{label: "nats", port: 4222, says: []string{"<INFO {\"server_id\":\"A\"}\r\n"}},
	{label: "openwire", port: 61616, says: []string{">" + u32(40) + "\x01ActiveMQ" + x(31)}},
	{label: "xmpp", port: 5222, says: []string{"><?xml version='1.0'?><stream:stream to='example.org' xmlns='jabber:client'>"}},
	{label: "truphone", port: 5222, says: []string{"><?xml version='1.0'?><stream:stream to='truphone.example' xmlns='jabber:client'>"}},
	{label: "irc", port: 6667, says: []string{">NICK bob\r\nUSER bob 0 * :Bob\r\n"}},
	{label: "irc", port: 6667, says: []string{">CAP REQ :multi-prefix\r\n"}},
	{label: "irc", port: 6667, says: []string{">STARTTLS\r\n", "<:irc.example.org 670  :go ahead\r\n"}},
	{label: "irc", port: 6667, says: []string{"<:irc.example.org NOTICE AUTH :hello\r\n"}},
	{label: "gearman", port: 4730, says: []string{">\x00REQ\x00\x00\x00\x07"}},
	{label: "zabbix", port: 10051, says: []string{">ZBXD\x01" + l32(9)}},
	{label: "munin", port: 4949, says: []string{"<# munin node at a.example\n"}},
	{label: "checkmk", port: 6556, says: []string{"<<<<check_mk>>>\nVersion: 2\n"}},
	{label: "ajp", port: 8009, says: []string{">\x12\x34" + in16("\x02\x02\x00\x08HTTP/1.1\x00")}},
	{label: "fastcgi", port: 9000, says: []string{">\x01\x01\x00\x01\x00\x08\x00\x00\x00\x01\x00" + z(5)}},
	{label: "haproxy", port: 80, says: []string{">PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\n"}},
	{label: "json_rpc", port: 4000, says: []string{`>{"jsonrpc":"2.0","method":"a","id":1}`}},
	{label: "mining", port: 3333, says: []string{`>{"id":1,"method":"mining.subscribe","params":[]}`}},
	{label: "corba", port: 2809, says: []string{">GIOP\x01\x02\x00\x00"}},
	{label: "jrmi", port: 1099, says: []string{">JRMI\x00\x02\x4b"}},
	{label: "hl7", port: 2575, says: []string{">\x0bMSH|^~\\&|a"}},
	{label: "fix", port: 9876, says: []string{">8=FIX.4.4\x019=65\x0135=A\x01"}},
	{label: "smpp", port: 2775, says: []string{">" + u32(29) + u32(9) + u32(0) + u32(1) + "bob\x00secret\x00\x00\x34"}},
	{label: "collectd", port: 25826, udp: true, says: []string{">" + u16(0) + u16(9) + "host\x00" + u16(1) + u16(12) + z(8)}},
	{label: "protobuf", port: 4000, udp: true, says: []string{">\x0a\x06sensor\x10\x07\x1a\x04unit\x20\x01"}},
	{label: "syslog", port: 514, udp: true, says: []string{"><34>1 2026-01-01T00:00:00Z host app - - - hello"}},
	{label: "syslog", port: 601, says: []string{">47 <34>1 2026-01-01T00:00:00Z host app - - - hello"}},
}

func FuzzMessaging(f *testing.F) { fuzzSamples(f, messagingSamples) }
