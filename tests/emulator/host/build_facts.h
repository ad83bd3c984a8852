// In the place of the header that the build writes (_build/extension.py).
constexpr char kBuildFacts[] = R"json(trajmatch-build-facts{"emulated": true})json";
