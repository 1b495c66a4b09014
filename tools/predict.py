from video_papr.cli.predict import main

if __name__ == "__main__":
    main()
