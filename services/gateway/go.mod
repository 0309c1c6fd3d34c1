module github.com/tidegate-mesh/tidegate/services/gateway

go 1.24.0

replace (
	github.com/tidegate-mesh/tidegate/libs => ../../libs
	github.com/tidegate-mesh/tidegate/proto => ../../proto
)
