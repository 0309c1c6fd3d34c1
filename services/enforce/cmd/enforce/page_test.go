package main

import (
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/config/configtest"
)

func TestConfigurationTable(t *testing.T) {
	configtest.Page(t, "../../README.md", &cli{}, "tidegate-enforce")
}
