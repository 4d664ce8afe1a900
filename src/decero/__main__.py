from decero.cli.main import main

main()
