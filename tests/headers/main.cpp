// Starts with unit.cpp linked twice.
int main() {}
