module github.com/tidegate-mesh/tidegate/services/gateway

go 1.24.0

replace (
	github.com/tidegate-mesh/tidegate/libs => ../../libs
	github.com/tidegate-mesh/tidegate/proto => ../../proto
)

require github.com/tidegate-mesh/tidegate/libs v0.0.0-00010101000000-000000000000
